"""Attention block by block against the formula: dropout, ALiBi, grouped queries, QK-norm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ablatrix.models import cpu_kernels
from ablatrix.models.attention import (
    CausalSelfAttention,
    causal_attention,
    fused_attention,
)
from ablatrix.models.config import GPTConfig
from ablatrix.models.cpu_kernels import keep_mask
from ablatrix.models.gpt import GPT
from ablatrix.models.positions import ALiBi, Rotary, alibi_slopes


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(2, 3, length, 8, dtype=dtype).requires_grad_() for _ in range(3)]


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, slopes: Tensor | None = None) -> Tensor:
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    if slopes is not None:
        t = torch.arange(q.shape[-2], dtype=torch.float64)
        scores = scores + slopes.double()[:, None, None] * (t[None, :] - t[:, None])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    return (weights if mask is None else weights * mask) @ v.double()


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("small", [0, 1 << 30], ids=["blocks", "whole"])
def test_values_and_gradients(length: int, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "BLOCK", 16)
    monkeypatch.setattr(cpu_kernels, "SMALL", small)
    qkv = inputs(length)
    upstream = torch.randn(2, 3, length, 8)
    ours, theirs = causal_attention(*qkv, 0.0), formula(*qkv)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(ours, qkv, upstream), torch.autograd.grad(theirs, qkv, upstream.double())
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_bfloat16() -> None:
    qkv = inputs(40, torch.bfloat16)
    ours, theirs = causal_attention(*qkv, 0.0), formula(*qkv)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), theirs, rtol=0.05, atol=0.05)
    for a, b in zip(torch.autograd.grad(ours.sum(), qkv), torch.autograd.grad(theirs.sum(), qkv), strict=True):
        assert float((a.double() - b.double()).norm()) < 0.05 * float(b.double().norm())


@pytest.mark.parametrize("length", [1, 16, 17, 40])
@pytest.mark.parametrize("how", ["blocks", "whole", "fused"])
def test_alibi_and_the_gradient_of_its_slopes(length: int, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "BLOCK", 16)
    monkeypatch.setattr(cpu_kernels, "SMALL", 0 if how == "blocks" else 1 << 30)
    leaves = [*inputs(length), torch.tensor([0.5, 0.1, 0.02]).requires_grad_()]
    q, k, v, slopes = leaves
    upstream = torch.randn(2, 3, length, 8)
    attend = fused_attention if how == "fused" else causal_attention
    ours, theirs = attend(q, k, v, 0.0, slopes), formula(q, k, v, slopes=slopes)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(theirs, leaves, upstream.double())
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_alibi_with_dropout_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "BLOCK", 16)
    monkeypatch.setattr(cpu_kernels, "SMALL", 0)
    leaves = [*inputs(32), torch.tensor([0.5, 0.1, 0.02]).requires_grad_()]
    upstream = torch.randn(2, 3, 32, 8)
    torch.manual_seed(5)
    ours = causal_attention(*leaves[:3], 0.3, leaves[3])
    torch.manual_seed(5)
    mask = torch.zeros(6, 32, 32, dtype=torch.float64)
    for start, stop in ((0, 16), (16, 32)):
        mask[:, start:stop, :stop] = keep_mask(torch.Size((6, 16, stop)), 0.3, torch.float64) / 0.7
    theirs = formula(*leaves[:3], mask.view(2, 3, 32, 32), leaves[3])
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(ours, leaves, upstream), torch.autograd.grad(theirs, leaves, upstream.double())
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_queries(kv_heads: int) -> None:
    """As in Ainslie et al. 2023: queries h and h + 1 share keys and values; with one head all do."""
    q = torch.randn(2, 4, 17, 8, requires_grad=True)
    k, v = (torch.randn(2, kv_heads, 17, 8, requires_grad=True) for _ in range(2))
    upstream = torch.randn(2, 4, 17, 8)
    ours = causal_attention(q, k, v, 0.0)
    heads = [formula(q[:, h], k[:, h * kv_heads // 4], v[:, h * kv_heads // 4]) for h in range(4)]
    theirs = torch.stack(heads, dim=1)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)
    gradients = (
        torch.autograd.grad(ours, (q, k, v), upstream),
        torch.autograd.grad(theirs, (q, k, v), upstream.double()),
    )
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_queries_and_keys_are_normalized_before_they_are_turned() -> None:
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, qk_norm=True, rope=True, attn_pdrop=0.0, resid_pdrop=0.0)
    layer = CausalSelfAttention(config.resolved(11, 8))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    assert layer.q_norm is not None and layer.k_norm is not None
    x = torch.randn(3, 6, 16)
    q, k, v = layer.c_attn(x).view(3, 6, 3, 2, 8).permute(2, 0, 3, 1, 4)

    def normalized(z: Tensor, weight: Tensor) -> Tensor:
        return z / torch.sqrt((z * z).mean(-1, keepdim=True) + 1e-5) * weight

    rotary = Rotary(8, 8)
    y = formula(rotary(normalized(q, layer.q_norm.weight)), rotary(normalized(k, layer.k_norm.weight)), v).float()
    expected = y.transpose(1, 2).reshape(3, 6, 16) @ layer.c_proj.weight.T + layer.c_proj.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("small", [4 * 3 * 32 * 32 - 1, 4 * 3 * 32 * 32], ids=["blocks", "whole"])
def test_parts_of_a_batch_draw_the_whole_batchs_masks(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a part alone would be small enough to be done in one piece."""
    monkeypatch.setattr(cpu_kernels, "BLOCK", 16)
    monkeypatch.setattr(cpu_kernels, "SMALL", small)
    q, k, v = (torch.randn(4, 3, 32, 8) for _ in range(3))
    torch.manual_seed(5)
    whole = causal_attention(q, k, v, 0.3)
    parts = []
    for index in range(2):
        monkeypatch.setattr(cpu_kernels, "_share", (index, 2))
        torch.manual_seed(5)
        parts.append(causal_attention(*(t[2 * index : 2 * index + 2] for t in (q, k, v)), 0.3))
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-6)


# ---- ALiBi


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
