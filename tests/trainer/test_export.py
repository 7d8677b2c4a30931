"""Exported runs in the programs that they are for: transformers, offline, and minGPT's state dict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ablatrix.models.config import GPTConfig, ResolvedGPTConfig
from ablatrix.models.gpt import GPT
from ablatrix.models.huggingface import UnsupportedError, describe_model, read_model
from ablatrix.models.huggingface_weights import from_huggingface, to_huggingface
from ablatrix.trainer import weights
from ablatrix.trainer.export import export
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import RunError, UserError

Train = Callable[..., Path]

LLAMA = {"positions": "rope", "norm": "rmsnorm", "feedforward": "swiglu"}
SIZES = {"model_type": None, "n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 50, "block_size": 16}
HELD: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("GPT2LMHeadModel", {}),
    "tied": ("GPT2LMHeadModel", {"tie_embeddings": True}),
    "no biases": ("GPT2LMHeadModel", {"bias": False}),
    "squared relu": ("GPT2LMHeadModel", {"feedforward": "relu2"}),
    "all on": ("LlamaForCausalLM", LLAMA),
    "llama": ("LlamaForCausalLM", LLAMA | {"bias": False}),
    "grouped queries": ("LlamaForCausalLM", LLAMA | {"bias": False, "n_kv_head": 2, "tie_embeddings": True}),
    "geglu": ("LlamaForCausalLM", LLAMA | {"feedforward": "geglu"}),
    "reglu": ("LlamaForCausalLM", LLAMA | {"feedforward": "reglu"}),
}


def resolved(**settings: Any) -> ResolvedGPTConfig:
    return GPTConfig(**(SIZES | settings)).resolved(0, 0)


def random_model(config: ResolvedGPTConfig) -> GPT:
    """A model none of whose parameters is at a value that others have too, such as a bias of zero."""
    model = GPT(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return model


def tokens(config: ResolvedGPTConfig) -> torch.Tensor:
    return torch.randint(config.vocab_size, (2, config.block_size), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", HELD)
@torch.no_grad()
def test_transformers_computes_the_same_logits(name: str) -> None:
    architecture, settings = HELD[name]
    config = resolved(**settings)
    model, idx = random_model(config), tokens(resolved(**settings))
    tree = describe_model(config)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**tree))
    assert type(theirs).__name__ == architecture
    missing, unexpected = theirs.load_state_dict(to_huggingface(config, model.state_dict()), strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if config.tie_embeddings else set())
    torch.testing.assert_close(theirs.eval()(idx).logits, model(idx)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", HELD)
def test_what_is_exported_can_be_read_back(name: str) -> None:
    config = resolved(**HELD[name][1])
    state = random_model(config).state_dict()
    found = read_model(describe_model(config))
    back = from_huggingface(found, to_huggingface(config, state))
    different = {key: (getattr(config, key), getattr(found, key)) for key in dict(config) if key != "model_type"}
    different = {key: pair for key, pair in different.items() if pair[0] != pair[1] and "pdrop" not in key}
    assert different == ({"bias": (False, True)} if name == "no biases" else {})
    assert set(state) <= set(back)
    for key, value in state.items():
        torch.testing.assert_close(back[key], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"positions": "alibi"}, "GPT2LMHeadModel cannot have model.positions: alibi"),
        ({"positions": "sinusoidal"}, "positions: sinusoidal"),
        ({"positions": "none"}, "positions: none"),
        ({"positions": "rope"}, "LlamaForCausalLM cannot have model.norm: layernorm or model.feedforward: gelu"),
        ({"feedforward": "swiglu"}, "GPT2LMHeadModel cannot have model.feedforward: swiglu"),
        ({"norm": "none"}, "norm: none"),
        ({"norm_placement": "post"}, "norm_placement: post"),
        ({"qk_norm": True}, "qk_norm: true"),
        ({"n_kv_head": 2}, "n_kv_head: 2"),
        (LLAMA | {"feedforward": "mine.mlp:MLP"}, "feedforward: mine.mlp:MLP"),
    ],
)
def test_what_neither_architecture_holds_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError) as refused:
        describe_model(resolved(**settings))
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is neither gpt2 nor llama"),
        ({"activation_function": "gelu"}, "activation_function is 'gelu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"n_inner": 100}, "n_inner is 100"),
        ({"n_head": 5}, "not divisible"),
        ({"n_layer": None}, "n_layer"),
    ],
)
def test_a_foreign_model_that_ours_cannot_be_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=named):
        read_model(describe_model(resolved()) | changes)


def test_a_run_is_exported_with_its_tokenizer(train: Train, tmp_path: Path) -> None:
    run = train(trainer__max_iters=3)
    line = export(run, tmp_path / "new" / "gpt2")
    assert line == f"{tmp_path / 'new' / 'gpt2'}: GPT2LMHeadModel of run after step 3"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["gpt2"]
    folder = str(tmp_path / "new" / "gpt2")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    codec = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    idx = codec("def f(x):", return_tensors="pt").input_ids[:, :8]
    config = weights.read_config(run)
    ours = GPT.from_state(config.model, torch.load(run / run_files.MODEL, weights_only=True)).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(idx).logits, ours(idx)[0], rtol=0, atol=1e-4)
    greedy = {"max_new_tokens": 4, "do_sample": False}
    assert loaded.generate(idx[:, :4], **greedy).tolist() == ours.generate(idx[:, :4], max_new_tokens=4).tolist()


def test_minGPT_finds_its_own_names_and_settings(train: Train, tmp_path: Path) -> None:  # noqa: N802
    run = train(trainer__max_iters=3, model__bias=False)
    assert "minGPT's GPT of run after step 3" in export(run, tmp_path / "lab", "mingpt")
    tree = json.loads((tmp_path / "lab" / "config.json").read_text())
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8, "vocab_size": 4096, "model_type": None}
    assert tree["model"].items() >= sizes.items() and set(tree) == {"system", "data", "model", "trainer"}
    state = torch.load(tmp_path / "lab" / "model.pt", weights_only=True)
    own = torch.load(run / run_files.MODEL, weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in own.items())
    linear = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj", "ln_1", "ln_2")
    biases = {f"transformer.h.0.{name}.bias" for name in linear} | {"transformer.ln_f.bias"}
    assert set(state) - set(own) == biases | {"transformer.h.0.attn.bias"}
    assert state["transformer.h.0.attn.bias"].shape == (1, 1, 8, 8)
    assert torch.equal(state["transformer.h.0.attn.bias"][0, 0], torch.ones(8, 8).tril())


def test_a_stopped_run_is_exported_from_its_newest_checkpoint(train: Train, tmp_path: Path) -> None:
    run = train(trainer__max_iters=9)
    for name in (run_files.MODEL, run_files.SUMMARY, "checkpoint-00000009.pt"):
        (run / name).unlink()
    assert export(run, tmp_path / "out").endswith("GPT2LMHeadModel of run after step 5")


def test_what_cannot_be_exported_creates_nothing(train: Train, tmp_path: Path) -> None:
    run = train(trainer__max_iters=3, model__positions="alibi")
    modern = train("modern", model__rope=True, model__rmsnorm=True, model__swiglu=True, model__n_embd=16)
    full, target = tmp_path / "full", tmp_path / "target"
    full.mkdir()
    (full / "mine").touch()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match="not an empty folder; choose a new one"):
        export(run, full)
    with pytest.raises(UserError, match=r"cannot export .*: GPT2LMHeadModel cannot have model\.positions: alibi"):
        export(run, target)
    with pytest.raises(UserError, match=r"minGPT cannot have model\.positions"):
        export(modern, target, "mingpt")
    with pytest.raises(UserError, match="unknown; choose transformers or mingpt"):
        export(run, target, "onnx")
    with pytest.raises(UserError, match="is not a run's folder"):
        export(tmp_path / "nothing", target)
    (run / run_files.MODEL).write_bytes(b"damaged")
    with pytest.raises(UserError, match="is corrupt, or contains more than tensors"):
        weights.read_weights(run, weights.read_config(run))
    for path in run.glob("*.pt"):
        path.unlink()
    with pytest.raises(UserError, match="no weights found"):
        weights.read_weights(run, weights.read_config(run))
    assert [path for path in sorted(tmp_path.iterdir()) if path not in before] == []


def test_logits_that_transformers_does_not_compute_are_not_exported(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(trainer__max_iters=3)
    monkeypatch.setattr("ablatrix.trainer.export.TOLERANCE", -1.0)
    with pytest.raises(RunError, match="computes different logits"):
        export(run, tmp_path / "target")
    assert not (tmp_path / "target").exists() and not list(tmp_path.glob(".target*"))
