"""Attention by compiled kernels against torch's products, with the same dropout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ablatrix.models import cpu_kernels, native
from ablatrix.models.compiled_attention import SOURCE, cpu_attention, packed_attention, split_heads
from ablatrix.models.cpu_kernels import block_attention


@pytest.fixture(autouse=True)
def _compiled(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_folder", kernels)
    assert native.load(SOURCE)


def compute(
    attend: object, length: int, width: int, pdrop: float, slopes: Tensor | None, dtype: torch.dtype
) -> list[Tensor]:
    """Return y and the gradients of q, k and v, laid out as the model does."""
    torch.manual_seed(0)
    heads = [t.requires_grad_() for t in torch.randn(2, length, 3, 3, width).to(dtype).permute(2, 0, 3, 1, 4)]
    y = attend(*heads, pdrop, slopes)  # type: ignore[operator]
    gradient = torch.randn(2, 3, length, width).to(dtype)
    return [y.detach(), *torch.autograd.grad(y, heads, gradient)]


def check(tolerance: float, *args: object) -> None:
    for ours, theirs in zip(compute(cpu_attention, *args), compute(block_attention, *args), strict=True):  # type: ignore[arg-type]
        assert ours.dtype == theirs.dtype
        assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@pytest.mark.parametrize(("length", "width"), [(128, 16), (129, 32), (200, 48), (256, 64), (515, 16)])
@pytest.mark.parametrize("pdrop", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("alibi", [False, True])
@pytest.mark.parametrize("drawn_by", ["window", "block"])
def test_as_torch_computes(
    length: int, width: int, pdrop: float, alibi: bool, drawn_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if drawn_by == "block":
        monkeypatch.setattr(cpu_kernels, "SMALL", 0)
    check(3e-6, length, width, pdrop, torch.tensor([0.5, 0.25, 0.125]) if alibi else None, torch.float32)


def test_bfloat16() -> None:
    check(0.03, 200, 32, 0.1, None, torch.bfloat16)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("length", [100, 200])  # the shorter one is not worth compiling
def test_q_k_and_v_in_one_tensor(dtype: torch.dtype, tolerance: float, length: int) -> None:
    qkv = torch.randn(2, length, 3 * 3 * 32).to(dtype).requires_grad_()
    gradient = torch.randn(2, length, 3 * 32).to(dtype)
    results = []
    for attend in (
        lambda: packed_attention(qkv, 3, 0.1, None),
        lambda: block_attention(*split_heads(qkv, 3), 0.1, None),
    ):
        torch.manual_seed(0)
        y = attend().transpose(1, 2).reshape(2, length, 3 * 32)
        results.append((y.detach(), *torch.autograd.grad(y, qkv, gradient)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


def test_heads_and_gradients_whose_channels_are_not_adjacent() -> None:
    heads = [torch.randn(2, 3, 16, 130).mT.requires_grad_() for _ in range(3)]
    found = torch.autograd.grad(cpu_attention(*heads, 0.0, None).sum(), heads)  # the gradient of a sum is expanded
    expected = torch.autograd.grad(block_attention(*heads, 0.0, None).sum(), heads)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_second_derivatives_are_refused_instead_of_being_wrong() -> None:
    heads = [torch.randn(1, 1, 128, 16, requires_grad=True) for _ in range(3)]
    (gradient,) = torch.autograd.grad(cpu_attention(*heads, 0.0, None).square().sum(), heads[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_scores_far_from_zero() -> None:
    slopes = torch.tensor([50.0, 5.0, -50.0])
    check(1e-4, 200, 16, 0.1, slopes, torch.float32)


def test_the_part_of_a_batch_gets_its_part_of_the_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "_share", (1, 2))
    check(3e-6, 200, 16, 0.5, None, torch.float32)
