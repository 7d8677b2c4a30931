"""GELU with a compiled kernel: torch's GELU takes as long as a linear layer of a small model."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ablatrix.models import native
from ablatrix.models.native import address

SOURCE = "gelu"
MIN_SIZE = 1 << 15  # fewer elements are not worth the second that compiling takes
FUNCTIONS = {torch.float32: "gelu_float32", torch.bfloat16: "gelu_bfloat16"}


def gelu(x: Tensor) -> Tensor:
    """x Phi(x) in GPT-2's tanh approximation (Hendrycks & Gimpel 2016)."""
    suits = x.device.type == "cpu" and x.dtype in FUNCTIONS and x.is_contiguous() and x.numel() >= MIN_SIZE
    if not suits or not native.load(SOURCE):
        return F.gelu(x, approximate="tanh")
    y: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
    return y


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _run(x, None)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return _run(x, grad_outputs[0].contiguous())


def _run(x: Tensor, dy: Tensor | None) -> Tensor:
    library = native.load(SOURCE)
    assert library is not None  # checked by `gelu`
    y = torch.empty_like(x)
    gradient = None if dy is None else address(dy)
    size = ctypes.c_long(x.numel())
    library[FUNCTIONS[x.dtype]](address(x), gradient, address(y), size, torch.get_num_threads())
    return y
