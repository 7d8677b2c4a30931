"""Cross-entropy of the output head without materializing all logits.

With 50,257 words the head is most of a small GPT's work, and the plain formulation is bound by memory traffic: the
logits of one sequence of 256 tokens are 51 MB, and they are written, read and copied many times. Here rows are
processed in chunks, and the gradients of x and of the weight are computed in the forward pass, while a chunk's logits
are still in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ablatrix.models import compiled_head
from ablatrix.models.cpu_kernels import TiledHeadLoss

IGNORE = -1  # target of a position that is not scored
DEVICE_CHUNK = 1 << 28  # most logits per chunk on a GPU; larger chunks are hardly faster
BYTES_PER_LOGIT = 512  # GPU memory required per logit of a chunk, which with its gradients then takes less than 5%
TILE = 64  # rows and columns of products on a GPU are padded to a multiple of this: 50,257 words would use it poorly

Pointwise = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def softmax_gradient(logits: Tensor, targets: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of some rows and its gradient w.r.t. the logits: softmax minus one-hot, times row weights.

    logits (R, V), targets (R, 1), scale (R, 1); the gradient has the logits' type. A separate function, so that a
    compiler can fuse it into one kernel.
    """
    log_p = logits.log_softmax(1, dtype=torch.float32)
    loss = -(log_p.gather(1, targets) * scale).sum()
    words = torch.arange(logits.shape[1], device=logits.device)
    gradient = log_p.exp_().sub_((words == targets).float()).mul_(scale)
    return loss, gradient.to(logits.dtype)


def head_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    divisor: float | Tensor | None = None,
    pointwise: Pointwise = softmax_gradient,
) -> Tensor:
    """Return the negative log-likelihood of `targets` under softmax(x weight^T) in nats, summed over rows / divisor.

    x (N, C), weight (V, C), targets (N,) with IGNORE where nothing is scored; divisor: by default the number of scored
    targets. Under autocast products use its type; sums are always float32. The result is a float32 scalar that can be
    differentiated once. pointwise: `softmax_gradient`, plain or compiled; used on GPUs.
    """
    device = x.device.type
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if divisor is None:
        divisor = (targets != IGNORE).sum()
    dtype = _product_type(x, weight)
    with torch.autocast(device, enabled=False):
        loss: Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
            x, weight, targets, divisor, dtype, needs_grad, pointwise
        )
    return loss


@torch.no_grad()
def token_losses(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target in nats, (N,) float32; 0 where nothing is scored.

    x, weight and targets are as for `head_loss`, which sums these terms.
    """
    scored, dtype = targets != IGNORE, _product_type(x, weight)
    with torch.autocast(x.device.type, enabled=False):
        rows = x, weight, targets.clamp(min=0), scored.float(), dtype
        kind = _cpu_chunks if x.device.type == "cpu" else ChunkedHeadLoss
        return torch.where(scored, kind(*rows, needs_grad=False).losses(), 0.0)


def _cpu_chunks(
    x: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, dtype: torch.dtype, *, needs_grad: bool
) -> TiledHeadLoss:
    compiled = compiled_head.find(weight, dtype, needs_grad)
    if compiled:
        return compiled(x, weight, targets, scale, needs_grad=needs_grad)
    return TiledHeadLoss(x, weight, targets, scale, dtype, needs_grad=needs_grad)


def _product_type(x: Tensor, weight: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917  (autograd passes them by position)
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        divisor: float | Tensor,
        dtype: torch.dtype,
        needs_grad: bool,
        pointwise: Pointwise,
    ) -> Tensor:
        scale = (targets != IGNORE).to(torch.float32) / divisor  # (N,) weight of each row in the loss
        rows = x.detach(), weight.detach(), targets.clamp(min=0), scale, dtype
        chunks: TiledHeadLoss | ChunkedHeadLoss
        if x.device.type == "cpu":
            chunks = _cpu_chunks(*rows, needs_grad=needs_grad)
        else:
            chunks = ChunkedHeadLoss(*rows, needs_grad=needs_grad, pointwise=pointwise)
        loss = chunks.run()
        ctx.dx, ctx.dw = (chunks.dx.to(x.dtype), chunks.dw) if needs_grad else (None, None)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (grad,) = grad_outputs
        if ctx.dx is None:
            raise RuntimeError("the head's gradients have been consumed; it can be differentiated only once")
        # give up our references, so that autograd keeps these tensors instead of copying them
        dx, dw, ctx.dx, ctx.dw = ctx.dx, ctx.dw, None, None
        if grad.device.type != "cpu" or grad.item() != 1.0:
            dx, dw = dx.mul_(grad), dw.mul_(grad)
        return dx, dw, None, None, None, None, None


class ChunkedHeadLoss:
    """`TiledHeadLoss` for a GPU: chunks of rows over the whole vocabulary; no value is read back to the host."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor,
        dtype: torch.dtype,
        *,
        needs_grad: bool,
        pointwise: Pointwise = softmax_gradient,
    ) -> None:
        self.x, self.targets, self.scale, self.pointwise = x.to(dtype), targets, scale, pointwise
        self.words = len(weight)
        self.w = weight.new_empty((-(-self.words // TILE) * TILE, weight.shape[1]), dtype=dtype)  # padded with zeros
        self.w[: self.words] = weight
        self.w[self.words :] = 0
        if needs_grad:
            self.dx = torch.empty_like(self.x)
            self.dw = torch.zeros_like(weight)
        self.needs_grad = needs_grad

    def run(self) -> Tensor:
        """Compute the gradients and return the loss."""
        return torch.stack([self._chunk(rows) for rows in self._slices()]).sum()

    def losses(self) -> Tensor:
        """Return the loss of each row, (N,) float32."""
        parts = [self.x.new_empty(0, dtype=torch.float32)]
        for rows in self._slices():
            logits = self._logits(rows).float()
            parts.append(logits.logsumexp(1) - logits.gather(1, self.targets[rows, None])[:, 0])
        return torch.cat(parts)

    def _slices(self) -> list[slice]:
        """Return the rows of each chunk, of equal size if possible: code is compiled for one chunk size."""
        rows = len(self.x)
        least = max(1, -(-rows * len(self.w) // _largest_chunk(self.x.device)))
        count = next((n for n in range(least, 2 * least + 1) if rows % (n * TILE) == 0), least)
        size = max(1, -(-rows // (count * TILE))) * TILE
        return [slice(start, start + size) for start in range(0, rows, size)]

    def _logits(self, rows: slice) -> Tensor:
        """Return the logits of some rows; padding is minus infinity, so that its probability and gradient are 0."""
        logits = self.x[rows] @ self.w.t()
        logits[:, self.words :] = -torch.inf
        return logits

    def _chunk(self, rows: slice) -> Tensor:
        loss, gradient = self.pointwise(self._logits(rows), self.targets[rows, None], self.scale[rows, None])
        if self.needs_grad:
            torch.mm(gradient, self.w, out=self.dx[rows])
            self.dw += (gradient.t() @ self.x[rows])[: self.words]
        return loss


def _largest_chunk(device: torch.device) -> int:
    """Return the largest number of logits to compute at a time on this GPU."""
    if device.type != "cuda":
        return DEVICE_CHUNK // 4
    return min(DEVICE_CHUNK, torch.cuda.get_device_properties(device).total_memory // BYTES_PER_LOGIT)
