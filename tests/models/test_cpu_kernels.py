"""Dropout on the CPU: rates, scaling, gradients, repeatability."""

from __future__ import annotations

import math

import pytest
import torch

from ablatrix.models.cpu_kernels import keep_mask
from ablatrix.models.layers import Dropout


@pytest.mark.parametrize("pdrop", [0.001, 0.1, 0.25, 0.5, 0.999])
def test_rate_is_exact(pdrop: float) -> None:
    torch.manual_seed(0)
    calls, size = 2000, 501  # the threshold is rounded at every call
    dropped = sum(float(1 - keep_mask(torch.Size((size,)), pdrop, torch.float32).mean()) for _ in range(calls)) / calls
    # binomial error, and that of the rounding to 1/256
    sigma = math.sqrt(pdrop * (1 - pdrop) / (calls * size)) + 0.5 / 256 / math.sqrt(calls)
    assert abs(dropped - pdrop) < 4 * sigma


def test_elements_are_independent() -> None:
    torch.manual_seed(1)
    mask = keep_mask(torch.Size((4096, 64)), 0.5, torch.float32)
    correlation = torch.corrcoef(mask.T) - torch.eye(64)
    assert correlation.abs().max() < 6 / math.sqrt(4096)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_elements_are_scaled_and_pass_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    layer = Dropout(0.25)
    x = torch.randn(64, 33, dtype=dtype, requires_grad=True)
    y = layer(x)
    kept = y != 0
    torch.testing.assert_close(
        y[kept], (x[kept] * (1 / 0.75)).to(dtype), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=0
    )
    (gradient,) = torch.autograd.grad(y.float().sum(), x)
    assert torch.equal(gradient != 0, kept)
    torch.testing.assert_close(gradient[kept].float(), torch.full((int(kept.sum()),), 1 / 0.75), rtol=1e-2, atol=0)


def test_generator_decides() -> None:
    layer, x = Dropout(0.1), torch.ones(1000)
    torch.manual_seed(3)
    first, other = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, other)


def test_off() -> None:
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
