"""Every component, alone and in company, as a whole model: it learns, samples, starts right, can be taken up again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ablatrix.models.config import GPTConfig
from ablatrix.models.gpt import GPT
from ablatrix.trainer.config import RunConfig, validate
from ablatrix.trainer.loop import Trainer
from ablatrix.trainer.optimizers import decaying
from tests.support.callbacks import at

VOCABULARY, BLOCK, STEPS = 29, 12, 30
MATRIX: dict[str, dict[str, Any]] = {
    "plain": {},
    "rope": {"positions": "rope"},
    "alibi": {"positions": "alibi"},
    "alibi_trainable": {"positions": "alibi", "alibi_trainable": True},
    "sinusoidal": {"positions": "sinusoidal"},
    "no_positions": {"positions": "none"},
    "swiglu": {"feedforward": "swiglu"},
    "geglu": {"feedforward": "geglu"},
    "reglu": {"feedforward": "reglu"},
    "relu2": {"feedforward": "relu2"},
    "rmsnorm": {"norm": "rmsnorm"},
    "no_norm": {"norm": "none"},
    "post": {"norm_placement": "post"},
    "qk_norm": {"qk_norm": True},
    "grouped": {"n_kv_head": 2},
    "no_bias": {"bias": False},
    "tied": {"tie_embeddings": True},
    "llama": {"positions": "rope", "feedforward": "swiglu", "norm": "rmsnorm", "bias": False, "n_kv_head": 1},
    "all": {
        "positions": "alibi",
        "alibi_trainable": True,
        "feedforward": "geglu",
        "norm": "rmsnorm",
        "norm_placement": "post",
        "qk_norm": True,
        "n_kv_head": 2,
        "bias": False,
        "tie_embeddings": True,
    },
}
every = pytest.mark.parametrize("changes", MATRIX.values(), ids=MATRIX)


def run_config(changes: dict[str, Any], **trainer: Any) -> RunConfig:
    sizes = {"model_type": None, "n_layer": 2, "n_head": 4, "n_embd": 32}
    settings = {"max_iters": STEPS, "batch_size": 8, "learning_rate": 1e-2, "eval_interval": 0, "device": "cpu"}
    tree = {
        "data": {"file_path": "made-up", "block_size": BLOCK},
        "model": {**sizes, **changes},
        "trainer": {**settings, "log_interval": 1, **trainer},
    }
    return validate(tree).resolved(VOCABULARY)


def tiny(changes: dict[str, Any]) -> GPTConfig:
    return run_config(changes).model


def batches(start: int, stop: int) -> Iterator[Any]:
    """Sequences in which each token follows from the one before."""
    for i in range(start, stop):
        first = np.random.default_rng(i).integers(0, VOCABULARY, (8, 1))
        row = (first + 3 * np.arange(BLOCK + 1)) % VOCABULARY
        yield np.ascontiguousarray(row[:, :-1]), np.ascontiguousarray(row[:, 1:])


def trainer_of(config: RunConfig) -> Trainer:
    x, y = next(iter(batches(10_000, 10_001)))
    return Trainer(config, batches, (x, y), "cpu")


@every
def test_it_learns(changes: dict[str, Any]) -> None:
    trainer = trainer_of(run_config(changes))
    before = trainer.evaluate()
    trainer.run()
    assert before is not None and trainer.val_loss is not None
    assert before == pytest.approx(math.log(VOCABULARY), abs=0.6)
    assert trainer.val_loss < 0.8 * before


@every
def test_a_resumed_run_is_the_untouched_one(changes: dict[str, Any]) -> None:
    whole, first, second = (trainer_of(run_config(changes, max_iters=6, warmup_steps=2)) for _ in range(3))
    whole.run()
    first.add_callback(at("on_batch_end", lambda t: setattr(t, "stop_requested", t.iter == 3)))
    first.run()
    second.load_state(first.state())
    second.run()
    ours, theirs = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert second.final_loss == whole.final_loss


@every
def test_each_weight_is_updated_once_and_all_are(changes: dict[str, Any]) -> None:
    model = GPT(tiny(changes), seed=3)
    x, y = (torch.from_numpy(a) for a in next(iter(batches(0, 1))))
    model.loss(x, y).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    updated = [parameter for _, parameter, _ in decaying(model)]
    assert {id(p) for p in updated} == {id(p) for p in model.parameters()}
    assert len(updated) == len({id(p) for p in updated})


@every
def test_it_starts_by_gpt2s_rule(changes: dict[str, Any]) -> None:
    model = GPT(GPTConfig(model_type="gpt-micro", **changes).resolved(600, 64), seed=5)
    plain = dict(GPT(GPTConfig(model_type="gpt-micro").resolved(600, 64), seed=5).named_parameters())
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name.endswith("slopes"):
            continue  # tests/models/test_attention.py
        if parameter.ndim < 2:
            assert torch.all(values == (0.0 if name.endswith("bias") else 1.0)), name
            continue
        expected = 0.02 / math.sqrt(2 * 4) if name.endswith("c_proj.weight") else 0.02
        assert float(values.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * values.numel())), name
        if name in plain and plain[name].shape == parameter.shape:
            assert torch.equal(plain[name], parameter), name


@every
def test_no_position_sees_a_later_one(changes: dict[str, Any]) -> None:
    model = GPT(tiny(changes), seed=3).eval()
    tokens = torch.arange(BLOCK)[None]
    changed = tokens.clone()
    changed[0, 5] = 20
    before, after = model(tokens)[0], model(changed)[0]
    torch.testing.assert_close(before[0, :5], after[0, :5], rtol=0, atol=0)
    assert not torch.allclose(before[0, 5:], after[0, 5:])


@every
def test_longer_than_the_block(changes: dict[str, Any]) -> None:
    config = tiny(changes)
    model = GPT(config, seed=3).eval()
    tokens = torch.arange(3 * BLOCK)[None] % VOCABULARY
    if config.positions == "learned":
        with pytest.raises(ValueError, match=f"{3 * BLOCK} tokens exceed the model's block_size {BLOCK}"):
            model(tokens)
        return
    logits = model(tokens)[0]
    assert bool(logits.isfinite().all())
    torch.testing.assert_close(logits[:, :BLOCK], model(tokens[:, :BLOCK])[0], rtol=1e-4, atol=1e-5)
    larger = GPT.from_state(config.model_copy(update={"block_size": 3 * BLOCK}), model.state_dict()).eval()
    torch.testing.assert_close(larger(tokens)[0], logits)


@every
def test_it_samples(changes: dict[str, Any]) -> None:
    config = tiny(changes)
    model = GPT(config, seed=3).eval()
    start = torch.tensor([[1, 2], [3, 4]])
    out = model.generate(start, BLOCK + 3)
    assert out.shape == (2, BLOCK + 5)
    assert torch.equal(out[:, -1], model(out[:, -1 - BLOCK : -1])[0][:, -1].argmax(-1))
    if config.extrapolates:
        far = model.generate(start, BLOCK + 3, context=2 * BLOCK)
        assert torch.equal(far[:, -1], model(far[:, :-1])[0][:, -1].argmax(-1))


@every
def test_saved_weights_make_the_same_model(changes: dict[str, Any], tmp_path: Any) -> None:
    model = GPT(tiny(changes), seed=3).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = GPT.from_state(model.config, torch.load(tmp_path / "model.pt", weights_only=True)).eval()
    tokens = torch.arange(BLOCK)[None]
    assert torch.equal(again(tokens)[0], model(tokens)[0])


def test_a_tied_head_is_the_embedding() -> None:
    model = GPT(tiny({"tie_embeddings": True}), seed=3)
    assert model.lm_head.weight is model.transformer.wte.weight
    again = GPT.from_state(model.config, model.state_dict())
    assert again.lm_head.weight is again.transformer.wte.weight
    untied = dict(GPT(tiny({}), seed=3).named_parameters())
    assert torch.equal(untied["transformer.wte.weight"], model.lm_head.weight)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_placement_of_norms(placement: str) -> None:
    """x + f(norm(x)), or norm(x + f(x)) (Vaswani et al. 2017), written out with the block's own parts."""
    block = GPT(tiny({"norm_placement": placement}), seed=3).eval().transformer.h[1]
    x = torch.randn(2, BLOCK, 32)
    if placement == "pre":
        middle = x + block.attn(block.ln_1(x))
        expected = middle + block.mlp(block.ln_2(middle))
    else:
        middle = block.ln_1(x + block.attn(x))
        expected = block.ln_2(middle + block.mlp(middle))
    assert torch.equal(block(x), expected)


def test_the_final_norm_belongs_to_pre_norm() -> None:
    assert isinstance(GPT(tiny({}), seed=None).transformer.ln_f, nn.LayerNorm)
    assert isinstance(GPT(tiny({"norm_placement": "post"}), seed=None).transformer.ln_f, nn.Identity)


@pytest.mark.parametrize("changes", [c for c in MATRIX.values() if c], ids=[n for n in MATRIX if MATRIX[n]])
def test_the_probe_sees_it(changes: dict[str, Any]) -> None:
    """`submit` refuses a feature that trains like the baseline: every component must show."""
    from ablatrix.trainer.effect_check import signature

    assert signature(run_config(changes).model_dump(mode="json")) != plain_signature()


def plain_signature() -> dict[str, str]:
    from ablatrix.trainer.effect_check import signature

    return signature(run_config({}).model_dump(mode="json"))


def test_the_probe_tells_group_sizes_apart() -> None:
    from ablatrix.trainer.effect_check import signature

    two, one = (signature(run_config({"n_kv_head": n}).model_dump(mode="json")) for n in (2, 1))
    assert two != one
