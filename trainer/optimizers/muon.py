"""Muon: momentum with matrix updates orthogonalized before they are applied."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ablatrix.trainer.optimizers.adamw import AdamW
from ablatrix.trainer.optimizers.base import Optimizer, decaying

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
RMS = 0.2  # RMS of AdamW's updates, as measured by Liu et al.
HEAD = "lm_head."


class Muon(Optimizer):
    """Muon (Jordan et al. 2024) for the matrices in the blocks; AdamW for embeddings, output head, norms and biases.

    m = momentum * m + (1 - momentum) * gradient;  u = gradient + momentum * (m - gradient) if nesterov else m;
    w = w - lr * weight_decay * w - lr * 0.2 * sqrt(max(rows, columns)) * newton_schulz(u).

    The factor gives updates the same RMS as AdamW's (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4; torch
    calls it match_rms_adamw), so that one learning rate and one weight decay work for both groups. A fused matrix, such
    as QKV, is treated as one matrix.
    """

    def __init__(
        self,
        model: nn.Module,
        betas: tuple[float, float],
        *,
        momentum: float,
        nesterov: bool,
        ns_steps: int,
        weight_decay: float,
        grad_norm_clip: float = 0.0,
    ) -> None:
        super().__init__(decaying(model), weight_decay, grad_norm_clip)
        self.momentum, self.nesterov, self.ns_steps, self.weight_decay = momentum, nesterov, ns_steps, weight_decay
        self.hidden = [n for n in self.groups[0][0] if self.named[n].ndim == 2 and not n.startswith(HEAD)]
        self.averages = {name: torch.zeros_like(self.named[name]) for name in self.hidden}
        self.rest = AdamW([p for p in decaying(model) if p[0] not in self.averages], betas, weight_decay)

    def set_learning_rate(self, learning_rate: float) -> None:
        super().set_learning_rate(learning_rate)
        self.rest.set_learning_rate(learning_rate)

    def update(self, divisor: Tensor | None) -> None:
        self.rest.update(divisor)
        names, rate = self.with_gradient(self.hidden), self.device_rate()
        for name, grad in zip(names, self.divided_gradients(names, divisor), strict=True):
            self.averages[name].lerp_(grad, 1 - self.momentum)
        for alike in self._alike(names):
            changes = torch.stack([self._change(name) for name in alike])
            scale = rate * (RMS * math.sqrt(max(changes.shape[1:])))
            for name, change in zip(alike, newton_schulz(changes, self.ns_steps), strict=True):
                self.named[name].mul_(1 - rate * self.weight_decay).sub_(change * scale)

    def _change(self, name: str) -> Tensor:
        """Return u for a matrix whose average is already updated."""
        average, grad = self.averages[name], self.named[name].grad
        return torch.lerp(grad, average, self.momentum) if self.nesterov and grad is not None else average

    def _alike(self, names: list[str]) -> list[list[str]]:
        """Group the matrices for batched products: by shape on a GPU, each alone elsewhere."""
        groups: dict[Any, list[str]] = {}
        for name in names:
            groups.setdefault(self.named[name].shape if self.device.type == "cuda" else name, []).append(name)
        return list(groups.values())

    def state_dict(self) -> dict[str, Any]:
        return {"averages": self.averages, **self.rest.state_dict()}


def newton_schulz(matrices: Tensor, steps: int) -> Tensor:
    """Approximate U Vᵀ for each matrix U S Vᵀ, (B, rows, columns), in bfloat16: singular values become about 1.

    Each step maps them by the odd polynomial a s + b s³ + c s⁵, whose slope at 0 is as steep as possible (Jordan et al.
    2024): five steps bring values above a thousandth to between about 0.7 and 1.2.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices.bfloat16()
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT  # so that the products have the size of the shorter side
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(steps):
        square = x @ x.mT  # (B, n, n)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)
