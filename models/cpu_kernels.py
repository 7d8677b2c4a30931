"""CPU kernels that are faster than torch's at the sizes of small models: dropout, causal attention, the head's loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# ---- dropout: torch takes 6 ns per element; one 64-bit draw per eight elements is ten times faster

LEVELS = 256  # values of a random byte
_share = (0, 1)  # (index, count): the part of each batch that this process works on


def take_share(index: int, count: int) -> None:
    """Declare that this process works on part `index` of `count` of every batch.

    Its dropout masks are then its part of the masks that a single process would draw for the whole batch, provided
    that all processes seed torch's default generator identically.
    """
    global _share
    _share = (index, count)


def keep_mask(shape: torch.Size, pdrop: float, dtype: torch.dtype) -> Tensor:
    """Return a mask that is 0 with probability `pdrop` and 1 otherwise, drawn from torch's default generator.

    Each byte is compared with pdrop * 256, rounded up or down at random, so that each element's probability is exact.
    """
    drawn, level = draw_bytes(shape, pdrop)
    mask = torch.empty(shape, dtype=dtype)
    if level > 127:  # above every int8
        return mask.zero_()
    torch.ge(drawn, level, out=mask)
    return mask


def draw_bytes(shape: torch.Size, pdrop: float) -> tuple[Tensor, int]:
    """Return random bytes (int8) from torch's default generator, and the level below which an element is dropped."""
    (index, shares), size = _share, shape.numel()
    count = size * shares  # the first dimension counts windows, or heads of windows
    words = torch.empty((count + 7) // 8 + 1, dtype=torch.int64).random_(-(2**63), None)
    level = int(pdrop * LEVELS + (int(words[0]) % LEVELS) / LEVELS)
    drawn = words[1:].view(torch.int8)[index * size : (index + 1) * size].view(shape)
    return drawn, level - LEVELS // 2


def dropout(x: Tensor, pdrop: float) -> Tensor:
    """Zero each element with probability `pdrop` and scale the others by 1 / (1 - pdrop)."""
    dropped: Tensor = _Dropout.apply(x, pdrop)  # type: ignore[no-untyped-call]
    return dropped


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, pdrop: float) -> Tensor:
        mask = keep_mask(x.shape, pdrop, x.dtype).mul_(1 / (1 - pdrop))
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return grad_outputs[0] * mask, None


# ---- causal attention: at small head sizes torch's own kernel takes two to three times as long as batched products

BLOCK = 64  # queries per block: keys after a block's last query are skipped
SMALL = 1 << 19  # number of scores (all heads) up to which blocks cost more than they save


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, pdrop: float, slopes: Tensor | None, *, documents: Tensor | None = None
) -> Tensor:
    """Compute causal attention one block of queries at a time: q, k, v (B, nh, T, hs) -> (B, nh, T, hs).

    pdrop: dropout probability of the attention weights. slopes (nh,): ALiBi slopes; (key - query) * slope is added to
    the scores. documents (B, T): document number of each position; a position attends only within its own document.
    """
    y: Tensor = _BlockAttention.apply(q, k, v, pdrop, slopes, documents)  # type: ignore[no-untyped-call]
    return y


class _BlockAttention(torch.autograd.Function):
    """For each block of queries: s = q k^T / sqrt(hs) + slope (key - query), p = softmax(s), y = dropout(p) v.

    Backward (the chain rule, as in Dao et al. 2022, appendix B.2): with d = rowsum(dy y), which is also
    rowsum(p dp), ds = p (dp - d), where dp is dy v^T, masked and scaled. A slope's gradient is the sum of
    ds (key - query) over all sequences.
    """

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    def forward(  # noqa: PLR0917  (autograd passes them by position)
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pdrop: float, slopes: Tensor | None, documents: Tensor | None
    ) -> Tensor:
        B, nh, T, hs = q.shape  # noqa: N806
        q, k, v = (t.reshape(B * nh, T, hs) for t in (q, k, v))
        ctx.scale, ctx.dropout = 1 / (1 - pdrop), pdrop > 0
        v = v * ctx.scale if pdrop else v  # cheaper than scaling the T / hs times as many weights
        y = torch.empty_like(q)
        ctx.blocks = query_blocks(B * nh, T)
        kept: list[Tensor] = []
        for start, stop in ctx.blocks:
            s = torch.baddbmm(
                causal_mask(start, stop, q.dtype), q[:, start:stop], k[:, :stop].mT, alpha=1 / math.sqrt(hs)
            )  # (B nh, block, stop)
            if slopes is not None:
                s.view(B, nh, stop - start, stop).add_(slopes[:, None, None] * distances(start, stop))
            if documents is not None:
                s.view(B, nh, stop - start, stop).masked_fill_(other_documents(documents, start, stop), -math.inf)
            p = torch.softmax(s, -1, out=s)
            dropped = keep_mask(p.shape, pdrop, p.dtype).mul_(p) if pdrop else p
            y[:, start:stop] = dropped @ v[:, :stop]
            if any(ctx.needs_input_grad):
                kept += [p, dropped] if pdrop else [p]
        ctx.save_for_backward(q, k, v, y, *kept)
        return y.view(B, nh, T, hs)

    @staticmethod
    @torch.autocast("cpu", enabled=False)  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        shape, n_head = grad_outputs[0].shape, grad_outputs[0].shape[1]
        q, k, v, y, *kept = ctx.saved_tensors
        dy = grad_outputs[0].reshape(q.shape)
        d = (dy * y).sum(-1, keepdim=True)  # (B nh, T, 1)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dslopes = torch.zeros(n_head) if ctx.needs_input_grad[4] else None
        last = True
        for start, stop in reversed(ctx.blocks):  # start with the last block, which sees all keys
            dropped = kept.pop()
            p = kept.pop() if ctx.dropout else dropped
            dyb, db = dy[:, start:stop], d[:, start:stop]
            if not ctx.dropout:
                ds = torch.baddbmm(db, dyb, v[:, :stop].mT, beta=-1).mul_(p)
            else:
                ds = (dyb @ v[:, :stop].mT).mul_(dropped).addcmul_(p, db, value=-1)
            if dslopes is not None:
                heads = ds.view(-1, n_head, stop - start, stop).sum(0, dtype=torch.float32)
                dslopes += (heads * distances(start, stop)).sum((1, 2))
            dq[:, start:stop] = ds @ k[:, :stop]
            parts = ds.mT @ q[:, start:stop], dropped.mT @ dyb
            for total, part in zip((dk, dv), parts, strict=True):
                total.copy_(part) if last else total[:, :stop].add_(part)
            last = False
        scale = 1 / math.sqrt(q.shape[-1])
        return (
            dq.mul_(scale).view(shape),
            dk.mul_(scale).view(shape),
            dv.mul_(ctx.scale).view(shape),
            None,
            dslopes,
            None,
        )


def query_blocks(heads: int, length: int) -> list[tuple[int, int]]:
    """Return the blocks of queries whose dropout is drawn together; heads: total over the windows of this process."""
    # for the whole batch: the order of random numbers must not depend on how many processes share it
    size = length if _share[1] * heads * length * length <= SMALL else BLOCK
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def causal_mask(start: int, stop: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Return the mask (stop - start, stop): 0 where query start + i may attend to key j <= start + i, else -inf."""
    return torch.full((stop - start, stop), -math.inf, dtype=dtype, device=device).triu_(start + 1)


def other_documents(documents: Tensor, start: int, stop: int) -> Tensor:
    """Return a mask (B, 1, stop - start, stop): True where key j and query start + i are in different documents."""
    return documents[:, None, start:stop, None] != documents[:, None, None, :stop]


def distances(start: int, stop: int, device: torch.device | None = None) -> Tensor:
    """Return key - query for queries start .. stop - 1 and keys 0 .. stop - 1, (stop - start, stop) float32."""
    positions = torch.arange(stop, device=device, dtype=torch.float32)
    return positions - positions[start:, None]


# ---- loss of the output head: a tile of the logits is exponentiated, summed and multiplied while it is in cache

LOG2_E = math.log2(math.e)
ROWS = 512  # rows per chunk: its exponentials are the largest tensor ever held, 4 x ROWS x V bytes
NARROW = 64  # up to this many channels, half as many rows are faster
TILE = 1 << 21  # logits per tile, which stays in the last-level cache
# Sums of exponentials within these bounds have lost nothing to overflow or underflow
SAFE = (1e-30, 1e30)


class TiledHeadLoss:
    """Loss and gradients of the output head, computed in chunks of rows and tiles of the vocabulary.

    With e = exp(W x^T) and z its sums over the vocabulary, the loss of a row is log z - w_target . x; its gradient
    with respect to x is (e^T W) / z - w_target, and to W it is e (x / z), less x in the target's row. Neither needs e
    normalized: a tile is multiplied, exponentiated in place, summed, multiplied by W while it is hot, and read once
    more when z is known.

    x (N, C), weight (V, C), targets (N,) >= 0, scale (N,): weight of each row in the loss. With needs_grad, `dx` (N, C)
    and `dw` (V, C) are the gradients after `run`.
    """

    block = 1  # the rows of a chunk are rounded up to a multiple of this
    word_block = 1  # likewise the words
    rounds_weight = True  # whether the weight is converted to the products' type once for all chunks

    def __init__(
        self, x: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, dtype: torch.dtype, *, needs_grad: bool
    ) -> None:
        self.x, self.weight, self.targets, self.scale = x.float(), weight, targets, scale
        self.w = weight.to(dtype) if self.rounds_weight else weight
        self.needs_grad = needs_grad
        (n, c), v = x.shape, weight.shape[0]
        room = -(-v // self.word_block) * self.word_block
        self.rows = self.chunk_rows(c)
        rows = self.padded(min(self.rows, n))
        words = max(1, TILE // rows)
        self.tiles = [(start, min(start + words, v)) for start in range(0, v, words)]
        self.z = scale.new_empty(n)
        self.shift = scale.new_zeros(n)  # subtracted from the logits before exponentiating, in powers of 2
        self.buffer = torch.empty((room if needs_grad else words) * rows, dtype=dtype)
        if needs_grad:
            self.dx = torch.empty(n, c)
            self.dw = torch.empty(room, c)[:v]

    def chunk_rows(self, width: int) -> int:
        """Return the chunk size in rows that is fastest for this number of channels."""
        return ROWS if width > NARROW else max(1, ROWS // 2)

    def padded(self, rows: int) -> int:
        """Return the number of rows rounded up to whole blocks."""
        return -(-rows // self.block) * self.block

    def run(self) -> Tensor:
        """Compute the gradients and return the loss."""
        return (self.losses() * self.scale).sum()

    def losses(self) -> Tensor:
        """Compute the gradients and return the loss of each row, (N,)."""
        for start in range(0, len(self.x), self.rows):
            self._chunk(slice(start, min(start + self.rows, len(self.x))))
        target_w = self.weight[self.targets]  # (N, C)
        if self.needs_grad:
            scale = self.scale[:, None]
            self.dx.addcmul_(target_w, scale, value=-1)
            self.dw.index_add_(0, self.targets, self.x * scale, alpha=-1)
        return self.z.log() + self.shift / LOG2_E - (self.x * target_w).sum(1)

    def _chunk(self, rows: slice) -> None:
        x = self.x[rows]
        # base 2, because exp2 is three times faster than exp
        xt = (x * LOG2_E).to(self.w.dtype).t().contiguous()  # (C, R)
        z, dxt = self._forward(xt, None)
        if not SAFE[0] < z.min().item() <= z.max().item() < SAFE[1]:  # also true for NaN
            shift = self._largest(xt)
            self.shift[rows] = shift
            z, dxt = self._forward(xt, shift)
        self.z[rows] = z
        if self.needs_grad:
            weight = self.scale[rows] / z
            torch.mul(dxt.t(), weight[:, None], out=self.dx[rows])
            self._add_weight_gradient((x * weight[:, None]).to(self.w.dtype), first=rows.start == 0)

    def _tile(self, start: int, stop: int, n: int) -> Tensor:
        begin = start * n if self.needs_grad else 0
        return self.buffer[begin : begin + (stop - start) * n].view(stop - start, n)  # (V', R)

    def _largest(self, xt: Tensor) -> Tensor:
        """Return the largest base-2 logit of each row."""
        maxima = [(self.w[start:stop] @ xt).amax(0) for start, stop in self.tiles]
        return torch.stack(maxima).amax(0).float()

    def _forward(self, xt: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return z (R,) and, with gradients, W^T e (C, R)."""
        c, n = xt.shape
        z, dxt = torch.zeros(n), torch.zeros(c, n)
        for start, stop in self.tiles:
            w, e = self.w[start:stop], self._tile(start, stop, n)
            torch.mm(w, xt, out=e)
            if shift is not None:
                e -= shift
            e.exp2_()
            z += e.float().sum(0)  # converting first is faster than a mixed-precision sum
            if self.needs_grad and w.dtype == torch.float32:
                dxt.addmm_(w.t(), e)
            elif self.needs_grad:
                dxt += w.t() @ e
        return z, dxt

    def _add_weight_gradient(self, x: Tensor, first: bool) -> None:
        """dw += e x, tile by tile; x (R, C) carries the rows' weights."""
        for start, stop in self.tiles:
            e, dw = self._tile(start, stop, len(x)), self.dw[start:stop]
            if x.dtype == torch.float32:
                torch.mm(e, x, out=dw) if first else dw.addmm_(e, x)
            else:
                dw.copy_(e @ x) if first else dw.add_(e @ x)
