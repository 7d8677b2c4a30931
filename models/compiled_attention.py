"""Causal attention for small heads with compiled kernels: scores stay in cache and are recomputed for the gradients."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ablatrix.models import native
from ablatrix.models.cpu_kernels import BLOCK, block_attention, draw_bytes, query_blocks
from ablatrix.models.native import address

SOURCE = "attention"
MIN_LENGTH = 128  # shorter windows are not worth the second that compiling takes
MAX_WIDTH = 64


def cpu_attention(
    q: Tensor, k: Tensor, v: Tensor, pdrop: float, slopes: Tensor | None, *, documents: Tensor | None = None
) -> Tensor:
    """Compute `block_attention` the fastest way, with the same dropout; q, k, v (B, nh, T, hs) -> (B, nh, T, hs)."""
    (length, width), trainable = q.shape[-2:], slopes is not None and slopes.requires_grad
    suits = documents is None and not trainable and length >= MIN_LENGTH and width % 16 == 0 and width <= MAX_WIDTH
    if not suits or q.dtype not in {torch.float32, torch.bfloat16} or not native.load(SOURCE):
        return block_attention(q, k, v, pdrop, slopes, documents=documents)
    y: Tensor = _CompiledAttention.apply(q, k, v, pdrop, slopes)  # type: ignore[no-untyped-call]
    return y


class _CompiledAttention(torch.autograd.Function):
    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    def forward(  # noqa: PLR0917  (autograd passes them by position)
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pdrop: float, slopes: Tensor | None
    ) -> Tensor:
        B, nh, T, _ = shape = q.shape  # noqa: N806
        ctx.dtype, ctx.pdrop, ctx.slopes = q.dtype, pdrop, slopes
        ctx.blocks = query_blocks(B * nh, T)
        draws = [draw_bytes(torch.Size((B * nh, b - a, b)), pdrop) for a, b in ctx.blocks] if pdrop else []
        drawn, ctx.levels = [draw[0] for draw in draws], [draw[1] for draw in draws]
        q, k, v = (torch.empty(shape).copy_(t) for t in (q, k, v))
        y, log_sums = torch.empty(shape), torch.empty(shape[:-1])
        _run(ctx, drawn, q, k, v, y, log_sums)
        ctx.save_for_backward(q, k, v, y, log_sums, *drawn)
        return y.to(ctx.dtype)

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        q, k, v, y, log_sums, *drawn = ctx.saved_tensors
        dy = torch.empty(q.shape).copy_(grad_outputs[0])
        dq, dk, dv = torch.empty(q.shape), torch.zeros(q.shape), torch.zeros(q.shape)
        _run(ctx, drawn, q, k, v, y, log_sums, dy, dq, dk, dv)
        scale = q.shape[-1] ** -0.5
        return dq.mul_(scale).to(ctx.dtype), dk.mul_(scale).to(ctx.dtype), dv.to(ctx.dtype), None, None


def _run(ctx: Any, drawn: list[Tensor], *arrays: Tensor) -> None:
    """Call the kernel. arrays: q, k, v, y, log_sums (B, nh, T) and, for gradients, dy, dq, dk, dv."""
    library = native.load(SOURCE)
    assert library is not None  # checked by `cpu_attention`
    B, nh, T, hs = arrays[0].shape  # noqa: N806
    dropouts = []  # one per BLOCK queries: pointer to the bytes, strides of rows and heads, level
    for index, (start, stop) in enumerate(ctx.blocks):
        for row in range(0, stop - start, BLOCK):
            pointer = drawn[index].data_ptr() + row * stop if drawn else 0
            dropouts.append((pointer, stop, (stop - start) * stop, ctx.levels[index] if drawn else 0))
    threads, padded = torch.get_num_threads(), -(-T // BLOCK) * BLOCK + 16
    table = torch.tensor(dropouts, dtype=torch.int64)
    scratch = torch.empty(threads, 2 * (hs + BLOCK) * padded)
    library.attention(
        *(ctypes.c_long(size) for size in (B * nh, T, hs)),
        ctypes.c_float(1 / (1 - ctx.pdrop)),
        *(None if ctx.slopes is None else address(ctx.slopes), ctypes.c_long(nh)),
        address(table),
        *(address(array) for array in arrays),
        *[None] * (9 - len(arrays)),
        address(scratch),
        threads,
    )
