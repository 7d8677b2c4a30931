"""AdamW on flat lists of parameters, by torch's fused kernel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ablatrix.trainer.optimizers.base import Optimizer, Parameters

EPS = 1e-8


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019, algorithm 2).

    betas: of the running means of the gradient and of its square.
    """

    def __init__(
        self, parameters: Parameters, betas: tuple[float, float], weight_decay: float, grad_norm_clip: float = 0.0
    ) -> None:
        super().__init__(parameters, weight_decay, grad_norm_clip)
        self.betas = betas
        self.exp_avg = {name: torch.zeros_like(p) for name, p in self.named.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in self.named.items()}
        self.steps = torch.zeros((), dtype=torch.float32, device=self.device)
        self.fused = self._has_kernel("_fused_adamw_")

    def update(self, too_large: Tensor | None) -> None:
        self.steps += 1
        self._each_group(self._fused_update if self.fused else self._plain_update, too_large)

    def _fused_update(self, names: list[str], weight_decay: float, too_large: Tensor | None) -> None:
        params: list[Any] = [self.named[name] for name in names]
        torch._fused_adamw_(
            params,
            [p.grad for p in params],
            [self.exp_avg[n] for n in names],
            [self.exp_avg_sq[n] for n in names],
            [],
            [self.steps] * len(params),
            lr=self._rate(),
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=weight_decay,
            eps=EPS,
            amsgrad=False,
            maximize=False,
            grad_scale=too_large,
        )

    def _plain_update(self, names: list[str], weight_decay: float, too_large: Tensor | None) -> None:
        params: list[Any] = [self.named[name] for name in names]
        grads = self._gradients(names, too_large)
        means, squares = [self.exp_avg[n] for n in names], [self.exp_avg_sq[n] for n in names]
        (beta1, beta2), step = self.betas, float(self.steps)
        torch._foreach_mul_(params, 1 - self.learning_rate * weight_decay)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1 - beta2**step))
        torch._foreach_add_(roots, EPS)
        torch._foreach_addcdiv_(params, means, roots, -self.learning_rate / (1 - beta1**step))

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
