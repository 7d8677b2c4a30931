"""The output head's loss with compiled kernels: in float32 up to a width, in bfloat16 on processors with AMX.

torch's matrix products are slow at inner dimensions as small as 48, and each pass over a tile of the logits costs as
much as a product. Here a tile is multiplied, exponentiated and summed in registers or in the L1 cache.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ablatrix.models import cpu_kernels, native
from ablatrix.models.cpu_kernels import TiledHeadLoss
from ablatrix.models.native import address

FLOAT32 = "compiled_head"
BFLOAT16 = ("amx_head", "-mavx512bf16", "-mamx-tile", "-mamx-bf16")
# torch's products are faster for wider heads. Without AMX, bfloat16 heads use the kernels in float32; with AVX2 torch's
# bfloat16 products are at least 20 times slower.
MAX_WIDTH: dict[str, dict[torch.dtype, float]] = {
    "AVX512": {torch.float32: 384, torch.bfloat16: 64},
    "AVX2": {torch.float32: 768, torch.bfloat16: math.inf},
}
MIN_WORDS = 2048  # smaller vocabularies are not worth the second that compiling takes


def find(weight: Tensor, dtype: torch.dtype, needs_grad: bool) -> type[CompiledHeadLoss | AmxHeadLoss] | None:
    """Return the class that is faster than `TiledHeadLoss` for a head (V, C) and this product type, None if none is."""
    words, width = weight.shape
    if words < MIN_WORDS or weight.dtype != torch.float32 or not weight.is_contiguous() or width % 16:
        return None
    if dtype == torch.bfloat16 and native.vectors() == "AVX512":
        library = native.load(*BFLOAT16)
        if library and library.amx_request():
            return AmxHeadLoss if needs_grad else None
    fast = width <= MAX_WIDTH.get(native.vectors(), {}).get(dtype, 0)
    return CompiledHeadLoss if fast and native.load(FLOAT32) else None


class CompiledHeadLoss(TiledHeadLoss):
    """`TiledHeadLoss` using the compiled float32 kernels."""

    block = 64  # rows per block in the C++ code

    def __init__(self, x: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, *, needs_grad: bool) -> None:
        super().__init__(x, weight, targets, scale, torch.float32, needs_grad=needs_grad)
        library = native.load(FLOAT32)
        assert library is not None  # checked by `find`
        self.library = library
        self.threads = torch.get_num_threads()

    def chunk_rows(self, width: int) -> int:
        return cpu_kernels.ROWS

    def _forward(self, xt: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        (c, n), size = xt.shape, self.padded(xt.shape[1])
        blocks = size // self.block
        x = F.pad(xt, (0, size - n)).view(c, blocks, self.block).transpose(0, 1).contiguous()
        shift = torch.zeros(size) if shift is None else F.pad(shift, (0, size - n))
        z, dx = torch.zeros(self.threads, size), torch.zeros(self.threads, blocks, c, self.block)
        self.library.head_forward(
            address(self.w),
            len(self.w),
            c,
            address(x),
            blocks,
            address(shift),
            address(self.buffer) if self.needs_grad else None,
            address(z),
            address(dx),
            self.threads,
        )
        return z.sum(0)[:n], dx.sum(0).transpose(0, 1).reshape(c, size)[:, :n]

    def _add_weight_gradient(self, x: Tensor, first: bool) -> None:
        (n, c), size = x.shape, self.padded(len(x))
        x = F.pad(x, (0, 0, 0, size - n))
        self.library.head_backward(
            address(self.buffer), len(self.w), c, address(x), size // self.block, address(self.dw), first, self.threads
        )


class AmxHeadLoss(TiledHeadLoss):
    """`TiledHeadLoss` with gradients, using the compiled bfloat16 kernels, which round the weight on the fly."""

    block = word_block = 32
    rounds_weight = False

    def __init__(self, x: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, *, needs_grad: bool) -> None:
        super().__init__(x, weight, targets, scale, torch.bfloat16, needs_grad=needs_grad)
        library = native.load(*BFLOAT16)
        assert library is not None  # checked by `find`
        self.library = library
        self.threads = torch.get_num_threads()
        self.scratch = torch.empty(self.threads, 256 * (2 * weight.shape[1] + 16), dtype=torch.bfloat16)

    def chunk_rows(self, width: int) -> int:
        return 2 * super().chunk_rows(width)  # each chunk costs one pass over the weight's gradient

    def _forward(self, xt: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        (c, n), size = xt.shape, self.padded(xt.shape[1])
        blocks, steps = size // 32, -(-c // 32)
        x = F.pad(xt, (0, size - n, 0, steps * 32 - c)).bfloat16().view(steps, 16, 2, blocks, 2, 16)
        x = x.permute(3, 0, 4, 1, 5, 2).contiguous()  # pairs of channels
        shift = torch.zeros(size) if shift is None else F.pad(shift, (0, size - n))
        z, dx = torch.zeros(self.threads, size), torch.zeros(self.threads, blocks, c // 16, 2, 16, 16)
        self.library.amx_forward(
            *(address(self.w), len(self.w), c, address(x), blocks, address(shift)),
            *(address(self.buffer), address(z), address(dx), address(self.scratch), self.threads),
        )
        return z.sum(0)[:n], dx.sum(0).permute(1, 3, 0, 2, 4).reshape(c, size)[:, :n]

    def _add_weight_gradient(self, x: Tensor, first: bool) -> None:
        (n, c), size = x.shape, self.padded(len(x))
        x = F.pad(x, (0, 0, 0, size - n)).bfloat16().view(-1, 16, 2, c // 16, 16)
        x = x.permute(0, 3, 1, 4, 2).contiguous()  # pairs of rows
        self.library.amx_backward(
            address(self.buffer), len(self.w), c, address(x), size // 32, address(self.dw), first, self.threads
        )
