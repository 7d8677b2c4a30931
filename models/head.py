"""Cross-entropy of the output head without ever holding all logits.

With 50,257 words the head is most of a small GPT's work, and in the plain formulation most of its time goes into
memory: the logits of one sequence of 256 tokens are 51 MB, and they are written, read and copied many times. Here rows
are taken in chunks, a chunk's vocabulary in tiles that stay in the cache, and the gradients of x and of the weight are
made in the forward pass, while a tile is at hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

IGNORE = -1  # target of a position that is not scored
LOG2_E = math.log2(math.e)
ROWS = 512  # of a chunk: its exponentials are the largest tensor that is ever held, 4 x ROWS x V bytes
TILE = 1 << 21  # logits of a tile, which stays in the last-level cache
DEVICE_CHUNK = 1 << 26  # logits of a chunk on a GPU: products of full speed, and a few hundred MB
# Sums of exponentials within these bounds have lost nothing to overflow or underflow
SAFE = (1e-30, 1e30)


def probabilities(logits: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of some rows and its gradient by the logits: softmax less one-hot, times the rows' weights.

    logits (R, V), targets (R, 1), scale (R, 1); the gradient has the logits' type. A function of its own, because it
    is what a compiler makes one kernel of.
    """
    wide = logits.float()
    log_z = wide.logsumexp(1, keepdim=True)
    loss = ((log_z - wide.gather(1, targets)) * scale).sum()
    words = torch.arange(logits.shape[1], device=logits.device)
    gradient = ((wide - log_z).exp() - (words == targets).float()) * scale
    return loss, gradient.to(logits.dtype)


def head_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    divisor: float | Tensor | None = None,
    pointwise: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = probabilities,
) -> Tensor:
    """Negative log-likelihood of `targets` under softmax(x weight^T), nats: the sum over rows / divisor.

    x (N, C), weight (V, C), targets (N,) with IGNORE where nothing is scored; divisor None: the number of scored
    targets. Under autocast the products are done in its type, sums always in float32. Returns a float32 scalar.
    Differentiable once. pointwise: `probabilities` or what a compiler made of it; used on GPUs.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if divisor is None:
        divisor = (targets != IGNORE).sum()
    with torch.autocast(device, enabled=False):
        loss: Tensor = _HeadLoss.apply(x, weight, targets, divisor, dtype, needs_grad, pointwise)
    return loss


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        divisor: float | Tensor,
        dtype: torch.dtype,
        needs_grad: bool,
        pointwise: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    ) -> Tensor:
        scale = (targets != IGNORE).to(torch.float32) / divisor  # (N,) weight of each row in the loss
        rows = x.detach(), weight.detach(), targets.clamp(min=0), scale, dtype, needs_grad
        chunks = _Tiled(*rows) if x.device.type == "cpu" else _Whole(*rows, pointwise)
        loss = chunks.run()
        ctx.dx, ctx.dw = (chunks.dx.to(x.dtype), chunks.dw) if needs_grad else (None, None)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (grad,) = grad_outputs
        if ctx.dx is None:
            raise RuntimeError("the head's gradients were used up: it can be differentiated once")
        # handed over, not lent: autograd then keeps them as they are instead of copying
        dx, dw, ctx.dx, ctx.dw = ctx.dx, ctx.dw, None, None
        if grad.device.type != "cpu" or grad.item() != 1.0:
            dx, dw = dx.mul_(grad), dw.mul_(grad)
        return dx, dw, None, None, None, None, None


class _Tiled:
    """The computation on a CPU: chunks of rows, tiles of the vocabulary.

    With e = exp(W x^T) and z its sums over the vocabulary, the loss of a row is log z - w_target . x; its gradient by
    x is (e^T W) / z - w_target and by W is e (x / z), less x in the target's row. Neither needs e normalised: a tile
    is multiplied, exponentiated in place, summed, multiplied with W while it is hot, and read once more when z is
    known.
    """

    def __init__(
        self, x: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, dtype: torch.dtype, needs_grad: bool
    ) -> None:
        self.x, self.weight, self.targets, self.scale = x.float(), weight, targets, scale
        self.w = weight.to(dtype)
        self.needs_grad = needs_grad
        (n, c), v = x.shape, weight.shape[0]
        rows = min(ROWS, n)
        words = max(1, TILE // rows)
        self.tiles = [(start, min(start + words, v)) for start in range(0, v, words)]
        self.z = scale.new_empty(n)
        self.shift = scale.new_zeros(n)  # subtracted from the logits before exponentiating, in powers of 2
        self.buffer = torch.empty((v if needs_grad else words) * rows, dtype=dtype)
        if needs_grad:
            self.dx = torch.empty(n, c)
            self.dw = torch.empty(v, c)

    def run(self) -> Tensor:
        for start in range(0, len(self.x), ROWS):
            self._chunk(slice(start, min(start + ROWS, len(self.x))))
        target_w = self.weight[self.targets]  # (N, C)
        nll = self.z.log() + self.shift / LOG2_E - (self.x * target_w).sum(1)
        if self.needs_grad:
            scale = self.scale[:, None]
            self.dx.addcmul_(target_w, scale, value=-1)
            self.dw.index_add_(0, self.targets, self.x * scale, alpha=-1)
        return (nll * self.scale).sum()

    def _chunk(self, rows: slice) -> None:
        x = self.x[rows]
        # base 2, because exp2 is three times faster than exp
        xt = (x * LOG2_E).to(self.w.dtype).t().contiguous()  # (C, R)
        z, dxt = self._forward(xt, None)
        if not SAFE[0] < z.min().item() <= z.max().item() < SAFE[1]:  # also where it is not a number
            shift = self._largest(xt)
            self.shift[rows] = shift
            z, dxt = self._forward(xt, shift)
        self.z[rows] = z
        if self.needs_grad:
            weight = self.scale[rows] / z
            torch.mul(dxt.t(), weight[:, None], out=self.dx[rows])
            self._weight_gradient((x * weight[:, None]).to(self.w.dtype), first=rows.start == 0)

    def _tile(self, start: int, stop: int, n: int) -> Tensor:
        begin = start * n if self.needs_grad else 0
        return self.buffer[begin : begin + (stop - start) * n].view(stop - start, n)  # (V', R)

    def _largest(self, xt: Tensor) -> Tensor:
        """The largest logit of each row, base 2."""
        maxima = []
        for start, stop in self.tiles:
            e = self._tile(start, stop, xt.shape[1])
            torch.mm(self.w[start:stop], xt, out=e)
            maxima.append(e.amax(0))
        return torch.stack(maxima).amax(0).float()

    def _forward(self, xt: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """z (R,) and, with gradients, W^T e (C, R)."""
        c, n = xt.shape
        z, dxt = torch.zeros(n), torch.zeros(c, n)
        for start, stop in self.tiles:
            w, e = self.w[start:stop], self._tile(start, stop, n)
            torch.mm(w, xt, out=e)
            if shift is not None:
                e -= shift
            e.exp2_()
            z += e.float().sum(0)  # converting first is faster than a mixed sum
            if self.needs_grad and w.dtype == torch.float32:
                dxt.addmm_(w.t(), e)
            elif self.needs_grad:
                dxt += w.t() @ e
        return z, dxt

    def _weight_gradient(self, x: Tensor, first: bool) -> None:
        """dw += e x, tile by tile; x (R, C) carries the rows' weights."""
        for start, stop in self.tiles:
            e, dw = self._tile(start, stop, len(x)), self.dw[start:stop]
            if x.dtype == torch.float32:
                torch.mm(e, x, out=dw) if first else dw.addmm_(e, x)
            else:
                dw.copy_(e @ x) if first else dw.add_(e @ x)


class _Whole:
    """The computation on a GPU: chunks of rows with the whole vocabulary, no value read back."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor,
        dtype: torch.dtype,
        needs_grad: bool,
        pointwise: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = probabilities,
    ) -> None:
        self.x, self.targets, self.scale, self.pointwise = x.to(dtype), targets, scale, pointwise
        self.w = weight.to(dtype)
        if needs_grad:
            self.dx = torch.empty_like(self.x)
            self.dw = torch.zeros_like(weight)
        self.needs_grad = needs_grad

    def run(self) -> Tensor:
        size = max(1, DEVICE_CHUNK // self.w.shape[0])
        losses = [self._chunk(slice(start, start + size)) for start in range(0, len(self.x), size)]
        return torch.stack(losses).sum()

    def _chunk(self, rows: slice) -> Tensor:
        x = self.x[rows]
        loss, gradient = self.pointwise(x @ self.w.t(), self.targets[rows, None], self.scale[rows, None])
        if self.needs_grad:
            torch.mm(gradient, self.w, out=self.dx[rows])
            self.dw += gradient.t() @ x
        return loss
