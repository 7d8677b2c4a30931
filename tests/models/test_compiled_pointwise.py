"""GELU by a compiled kernel against torch's in float64, dropout against the one by torch's operations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ablatrix.models import compiled_pointwise, cpu_kernels, native


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("size", [1, 16, 1007])
def test_value_and_derivative(
    dtype: torch.dtype, tolerance: float, size: int, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_folder", kernels)
    monkeypatch.setattr(compiled_pointwise, "MIN_SIZE", 0)
    assert native.load(compiled_pointwise.SOURCE)
    torch.manual_seed(0)
    x = (4 * torch.randn(size)).to(dtype)
    x[0] = -1e4
    gradient = torch.randn(size).to(dtype)
    found, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, reference = compiled_pointwise.gelu(found), F.gelu(exact, approximate="tanh")
    assert "Gelu" in type(y.grad_fn).__name__ and y.dtype == dtype
    y.backward(gradient)
    reference.backward(gradient.double())
    torch.testing.assert_close(y.double(), reference.detach(), rtol=tolerance, atol=tolerance)
    assert found.grad is not None and exact.grad is not None
    torch.testing.assert_close(found.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


def test_what_is_not_a_number_stays_so(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_folder", kernels)
    monkeypatch.setattr(compiled_pointwise, "MIN_SIZE", 0)
    for dtype in compiled_pointwise.TYPES:
        assert compiled_pointwise.gelu(torch.full((16,), float("nan"), dtype=dtype)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pdrop", [0.1, 0.5, 0.999])
def test_dropout_is_the_same_to_the_last_bit(
    dtype: torch.dtype, pdrop: float, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_folder", kernels)
    monkeypatch.setattr(compiled_pointwise, "MIN_SIZE", 0)
    x, gradient = (torch.randn(5, 203, dtype=dtype) for _ in range(2))
    results = []
    for dropout in (compiled_pointwise.dropout, cpu_kernels.dropout):
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        y = dropout(leaf.t(), pdrop)  # not contiguous
        y.backward(gradient.t())
        results.append((type(y.grad_fn), y.detach(), leaf.grad))
    (kind, *found), (other, *reference) = results
    assert kind is not other
    assert all(torch.equal(a, b) for a, b in zip(found, reference, strict=True))
