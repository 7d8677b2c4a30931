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
    if documents is not None or not _suits(q.shape[-2], q.shape[-1], q.dtype, slopes):
        return block_attention(q, k, v, pdrop, slopes, documents=documents)
    y: Tensor = _CompiledAttention.apply(pdrop, slopes, q.shape[1], q, k, v)  # type: ignore[no-untyped-call]
    return y


def packed_attention(
    qkv: Tensor, n_head: int, pdrop: float, slopes: Tensor | None, *, documents: Tensor | None = None
) -> Tensor:
    """Compute `cpu_attention` of q, k and v in one tensor, without copying them: (B, T, 3 nh hs) -> (B, nh, T, hs)."""
    width = qkv.shape[2] // (3 * n_head)
    if documents is not None or not _suits(qkv.shape[1], width, qkv.dtype, slopes):
        return block_attention(*split_heads(qkv, n_head), pdrop, slopes, documents=documents)
    y: Tensor = _CompiledAttention.apply(pdrop, slopes, n_head, qkv)  # type: ignore[no-untyped-call]
    return y


def split_heads(qkv: Tensor, n_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v (B, nh, T, hs), views of a tensor (B, T, 3 nh hs)."""
    B, T, C = qkv.shape  # noqa: N806
    q, k, v = qkv.view(B, T, 3, n_head, C // (3 * n_head)).permute(2, 0, 3, 1, 4)
    return q, k, v


def _suits(length: int, width: int, dtype: torch.dtype, slopes: Tensor | None) -> bool:
    trainable = slopes is not None and slopes.requires_grad
    suits = not trainable and length >= MIN_LENGTH and width % 16 == 0 and width <= MAX_WIDTH
    return suits and dtype in {torch.float32, torch.bfloat16} and native.load(SOURCE) is not None


class _CompiledAttention(torch.autograd.Function):
    """Inputs are q, k and v (B, nh, T, hs), or all three in one (B, T, 3 nh hs)."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, pdrop: float, slopes: Tensor | None, n_head: int, *inputs: Tensor) -> Tensor:
        ctx.dtype, ctx.packed = inputs[0].dtype, len(inputs) == 1
        q, k, v = split_heads(_rows(inputs[0]), n_head) if ctx.packed else map(_rows, inputs)
        B, nh, T, hs = q.shape  # noqa: N806
        ctx.pdrop, ctx.slopes, ctx.blocks = pdrop, slopes, query_blocks(B * nh, T)
        draws = [draw_bytes(torch.Size((B * nh, b - a, b)), pdrop) for a, b in ctx.blocks] if pdrop else []
        drawn, ctx.levels = [draw[0] for draw in draws], [draw[1] for draw in draws]
        y, log_sums = torch.empty(B, T, nh, hs).transpose(1, 2), torch.empty(B, nh, T)
        _run(ctx, drawn, log_sums, q, k, v, y)
        ctx.save_for_backward(q, k, v, y, log_sums, *drawn)
        return y.to(ctx.dtype)

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        q, k, v, y, log_sums, *drawn = ctx.saved_tensors
        B, nh, T, hs = q.shape  # noqa: N806
        gradient = torch.empty(B, T, 3 * nh * hs)
        parts = split_heads(gradient, nh)
        _run(ctx, drawn, log_sums, q, k, v, y, _rows(grad_outputs[0]), *parts)
        gradients = [gradient] if ctx.packed else parts
        return None, None, None, *(t.to(ctx.dtype) for t in gradients)


def _rows(x: Tensor) -> Tensor:
    """Return x in float32 and with adjacent channels, a copy only if it is not."""
    x = x.float()
    return x if x.stride(-1) == 1 else x.contiguous()


def _run(ctx: Any, drawn: list[Tensor], log_sums: Tensor, *arrays: Tensor) -> None:
    """Call the kernel. arrays (B, nh, T, hs): q, k, v, y and, for gradients, dy, dq, dk, dv."""
    library = native.load(SOURCE)
    assert library is not None  # checked by `_suits`
    B, nh, T, hs = arrays[0].shape  # noqa: N806
    dropouts = []  # one per BLOCK queries: pointer to the bytes, strides of rows and heads, level
    for index, (start, stop) in enumerate(ctx.blocks):
        for row in range(0, stop - start, BLOCK):
            pointer = drawn[index].data_ptr() + row * stop if drawn else 0
            dropouts += [pointer, stop, (stop - start) * stop, ctx.levels[index] if drawn else 0]
    places = [number for array in arrays for number in (array.data_ptr(), *array.stride()[:3])]
    threads, padded = torch.get_num_threads(), -(-T // BLOCK) * BLOCK + 16
    scratch = torch.empty(threads, 5 * hs * padded + 2 * BLOCK * (padded + hs))
    library.attention(
        *(ctypes.c_long(size) for size in (B * nh, T, hs)),
        ctypes.c_float(1 / (1 - ctx.pdrop)),
        *(None if ctx.slopes is None else address(ctx.slopes), ctypes.c_long(nh)),
        (ctypes.c_long * len(dropouts))(*dropouts),
        (ctypes.c_long * len(places))(*places),
        address(log_sums),
        ctypes.c_bool(len(arrays) > 4),
        address(scratch),
        threads,
    )
