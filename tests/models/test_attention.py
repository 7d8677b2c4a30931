"""Attention block by block against the formula, with and without dropout."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models import attention
from models.attention import causal_attention
from models.dropout import keep_mask


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(2, 3, length, 8, dtype=dtype).requires_grad_() for _ in range(3)]


def formula(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    return (weights if mask is None else weights * mask) @ v.double()


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("small", [0, 1 << 30], ids=["blocks", "whole"])
def test_values_and_gradients(length: int, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "BLOCK", 16)
    monkeypatch.setattr(attention, "SMALL", small)
    qkv = inputs(length)
    upstream = torch.randn(2, 3, length, 8)
    ours, theirs = causal_attention(*qkv, 0.0), formula(*qkv)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(ours, qkv, upstream), torch.autograd.grad(theirs, qkv, upstream.double())
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_dropout_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask is drawn block by block; drawn again from the same seed, it gives the formula's result."""
    monkeypatch.setattr(attention, "BLOCK", 16)
    monkeypatch.setattr(attention, "SMALL", 0)
    qkv, upstream = inputs(32), torch.randn(2, 3, 32, 8)
    torch.manual_seed(5)
    ours = causal_attention(*qkv, 0.3)
    torch.manual_seed(5)
    mask = torch.zeros(6, 32, 32, dtype=torch.float64)
    for start, stop in ((0, 16), (16, 32)):
        mask[:, start:stop, :stop] = keep_mask(torch.Size((6, 16, stop)), 0.3, torch.float64) / 0.7
    theirs = formula(*qkv, mask.view(2, 3, 32, 32))
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(ours, qkv, upstream), torch.autograd.grad(theirs, qkv, upstream.double())
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def test_bfloat16() -> None:
    qkv = inputs(40, torch.bfloat16)
    ours, theirs = causal_attention(*qkv, 0.0), formula(*qkv)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), theirs, rtol=0.05, atol=0.05)
    for a, b in zip(torch.autograd.grad(ours.sum(), qkv), torch.autograd.grad(theirs.sum(), qkv), strict=True):
        assert float((a.double() - b.double()).norm()) < 0.05 * float(b.double().norm())
