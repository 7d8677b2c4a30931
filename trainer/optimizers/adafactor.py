"""Adafactor: second moments of a matrix are stored as one number per row and one per column."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ablatrix.trainer.optimizers.base import Optimizer, Parameters

EPS_SQUARE, EPS_SCALE = 1e-30, 1e-3  # epsilon 1 and 2 in the paper
TINY = torch.finfo(torch.float32).tiny


class Adafactor(Optimizer):
    """Adafactor without momentum (Shazeer & Stern 2018, algorithms 4 and 5), with step sizes from the schedule.

    With b = 1 - t^beta2_decay:  R = b R + (1 - b) rowmean(g² + 1e-30), C likewise for columns, V = R C / mean(R) (for
    vectors, V is kept directly);  u = g / sqrt(V);  u = u / max(1, RMS(u) / update_clip);
    w = w - lr * weight_decay * w - lr * max(1e-3, RMS(w)) * u.

    The learning rate is thus relative to the size of the weights. The paper uses 1e-2, and 1 / sqrt(t) after 10,000
    steps, which is `schedule: inverse_sqrt` with 10,000 steps of warm-up.
    """

    def __init__(
        self,
        parameters: Parameters,
        beta2_decay: float,
        update_clip: float,
        weight_decay: float,
        grad_norm_clip: float = 0.0,
    ) -> None:
        super().__init__(parameters, weight_decay, grad_norm_clip)
        self.beta2_decay, self.update_clip = beta2_decay, update_clip
        matrices = {name: p for name, p in self.named.items() if p.ndim > 1}
        self.rows = {name: torch.zeros_like(p[..., :1]) for name, p in matrices.items()}
        self.columns = {name: torch.zeros_like(p[..., :1, :]) for name, p in matrices.items()}
        self.whole = {name: torch.zeros_like(p) for name, p in self.named.items() if p.ndim <= 1}
        self.steps = torch.zeros((), dtype=torch.float32, device=self.device)

    def update(self, divisor: Tensor | None) -> None:
        self.steps += 1
        share = self.steps**self.beta2_decay
        for names, weight_decay in self.groups_with_gradient():
            for name, grad in zip(names, self.divided_gradients(names, divisor), strict=True):
                self._update(name, self.named[name], grad, share, weight_decay)

    def _update(self, name: str, parameter: nn.Parameter, grad: Tensor, share: Tensor, weight_decay: float) -> None:
        rate = self.device_rate()
        change = grad * self._second_moment(name, grad, share).clamp_(min=TINY).rsqrt_()
        change /= (_rms(change) / self.update_clip).clamp_(min=1.0)
        step_size = _rms(parameter).clamp_(min=EPS_SCALE) * rate
        parameter.mul_(1 - rate * weight_decay)
        parameter.sub_(change.mul_(step_size))

    def _second_moment(self, name: str, grad: Tensor, share: Tensor) -> Tensor:
        """Return V, a new tensor of the gradient's shape."""
        square = grad * grad + EPS_SQUARE
        if grad.ndim <= 1:
            return self.whole[name].lerp_(square, share).clone()
        rows = self.rows[name].lerp_(square.mean(-1, keepdim=True), share)  # (..., n, 1)
        columns = self.columns[name].lerp_(square.mean(-2, keepdim=True), share)  # (..., 1, m)
        # divide first: the product for a row and a column that have had no gradient would underflow to 0
        return (rows / rows.mean(-2, keepdim=True)) * columns

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "rows": self.rows, "columns": self.columns, "whole": self.whole}


def _rms(x: Tensor) -> Tensor:
    """Return the root mean square, a scalar on the device."""
    rms: Tensor = torch.linalg.vector_norm(x) / x.numel() ** 0.5
    return rms
