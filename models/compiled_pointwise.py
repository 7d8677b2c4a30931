"""GELU and dropout with compiled kernels: with torch's, each takes as long as a linear layer of a small model."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ablatrix.models import cpu_kernels, native
from ablatrix.models.native import address

SOURCE = "pointwise"
MIN_SIZE = 1 << 13  # fewer elements are not worth the second that compiling takes
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) in GPT-2's tanh approximation (Hendrycks & Gimpel 2016)."""
    if not (x.is_contiguous() and _suits(x)):
        return F.gelu(x, approximate="tanh")
    y: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
    return y


def dropout(x: Tensor, pdrop: float) -> Tensor:
    """Compute `cpu_kernels.dropout` the fastest way, with the same result to the last bit."""
    if not _suits(x):
        return cpu_kernels.dropout(x, pdrop)
    y: Tensor = _Dropout.apply(x, pdrop)  # type: ignore[no-untyped-call]
    return y


def _suits(x: Tensor) -> bool:
    suits = x.device.type == "cpu" and x.dtype in TYPES and x.numel() >= MIN_SIZE
    return suits and native.load(SOURCE) is not None


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _run("gelu", x, None)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return _run("gelu", x, grad_outputs[0].contiguous())


class _Dropout(torch.autograd.Function):
    """The bytes drawn are kept for the gradient, a fourth or half of what a mask would take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pdrop: float) -> Tensor:
        drawn, level = cpu_kernels.draw_bytes(x.shape, pdrop)
        ctx.save_for_backward(drawn)
        ctx.rest = level, ctypes.c_float(1 / (1 - pdrop))
        return _run("dropout", x.contiguous(), drawn, *ctx.rest)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return _run("dropout", grad_outputs[0].contiguous(), *ctx.saved_tensors, *ctx.rest), None


def _run(name: str, x: Tensor, *args: Any) -> Tensor:
    """Call a kernel with a contiguous x, `args`, and the result, which is returned."""
    library = native.load(SOURCE)
    assert library is not None  # checked by `_suits`
    y = torch.empty_like(x)
    arrays = [address(arg) if isinstance(arg, Tensor) else arg for arg in (x, *args, y)]
    getattr(library, f"{name}_{TYPES[x.dtype]}")(*arrays, ctypes.c_long(x.numel()), torch.get_num_threads())
    return y
