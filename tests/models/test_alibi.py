"""ALiBi: its slopes, its effect on scores, and what it does beyond the training block."""

from __future__ import annotations

import pytest
import torch

from ablatrix.models.attention import ALiBi, alibi_slopes
from ablatrix.models.config import GPTConfig
from ablatrix.models.cpu_kernels import distances
from ablatrix.models.gpt import GPT


def tiny(**changes: object) -> GPTConfig:
    sizes = {"model_type": None, "n_layer": 2, "n_head": 4, "n_embd": 16, "vocab_size": 31, "block_size": 9}
    return GPTConfig.model_validate({**sizes, **changes})


def test_slopes_of_the_paper() -> None:
    assert alibi_slopes(8) == [1 / 2**h for h in range(1, 9)]
    assert alibi_slopes(16) == pytest.approx([2 ** (-h / 2) for h in range(1, 17)])


@pytest.mark.parametrize("n_head", range(1, 34))
def test_slopes_for_any_number_of_heads(n_head: int) -> None:
    """Press et al.'s rule, as transformers has it for BLOOM: its bias of key 1 is the slope."""
    bloom = pytest.importorskip("transformers.models.bloom.modeling_bloom")
    theirs = bloom.build_alibi_tensor(torch.ones(1, 2), n_head, torch.float32)[:, 0, 1]
    torch.testing.assert_close(torch.tensor(alibi_slopes(n_head)), theirs)


def test_distances_are_key_minus_query() -> None:
    found = distances(2, 4, torch.device("cpu"))
    assert found.tolist() == [[-2.0, -1.0, 0.0, 1.0], [-3.0, -2.0, -1.0, 0.0]]


def test_fixed_slopes_are_no_parameters_and_trainable_ones_start_from_them() -> None:
    assert not ALiBi(3, trainable=False).state_dict()
    fixed, trainable = GPT(tiny(positions="alibi")), GPT(tiny(positions="alibi", alibi_trainable=True))
    extra = set(trainable.state_dict()) - set(fixed.state_dict())
    assert extra == {f"transformer.h.{i}.attn.alibi.slopes" for i in range(2)}
    assert all(trainable.state_dict()[name].tolist() == alibi_slopes(4) for name in extra)
    tokens = torch.arange(9)[None]
    assert torch.equal(fixed.eval()(tokens)[0], trainable.eval()(tokens)[0])


def test_trainable_slopes_get_gradients_and_no_decay() -> None:
    from ablatrix.trainer.optimizers import decaying

    model = GPT(tiny(positions="alibi", alibi_trainable=True), seed=1)
    model.loss(torch.arange(9)[None], torch.arange(1, 10)[None]).backward()
    slopes = {n: (p, decays) for n, p, decays in decaying(model) if n.endswith("slopes")}
    assert len(slopes) == 2
    for parameter, decays in slopes.values():
        assert not decays
        assert parameter.grad is not None and bool((parameter.grad != 0).all())


def test_the_last_token_looks_back_less_with_steeper_slopes() -> None:
    """With slopes without bound each position sees itself alone, so that the others cannot matter."""
    model = GPT(tiny(positions="alibi", alibi_trainable=True), seed=1).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.alibi.slopes.fill_(1e4)
    tokens = torch.arange(9)[None]
    alone = model(tokens[:, -1:])[0]
    torch.testing.assert_close(model(tokens)[0][:, -1:], alone)
