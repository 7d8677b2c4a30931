"""GELU by a compiled kernel against torch's in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ablatrix.models import compiled_gelu, native


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("size", [1, 16, 1007])
def test_value_and_derivative(
    dtype: torch.dtype, tolerance: float, size: int, kernels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_folder", kernels)
    monkeypatch.setattr(compiled_gelu, "MIN_SIZE", 0)
    assert native.load(compiled_gelu.SOURCE)
    torch.manual_seed(0)
    x = (4 * torch.randn(size)).to(dtype)
    x[0] = -1e4
    gradient = torch.randn(size).to(dtype)
    found, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    y, reference = compiled_gelu.gelu(found), F.gelu(exact, approximate="tanh")
    assert "Gelu" in type(y.grad_fn).__name__ and y.dtype == dtype
    y.backward(gradient)
    reference.backward(gradient.double())
    torch.testing.assert_close(y.double(), reference.detach(), rtol=tolerance, atol=tolerance)
    assert found.grad is not None and exact.grad is not None
    torch.testing.assert_close(found.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


def test_what_is_not_a_number_stays_so(kernels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_folder", kernels)
    monkeypatch.setattr(compiled_gelu, "MIN_SIZE", 0)
    for dtype in compiled_gelu.FUNCTIONS:
        assert compiled_gelu.gelu(torch.full((16,), float("nan"), dtype=dtype)).isnan().all()
