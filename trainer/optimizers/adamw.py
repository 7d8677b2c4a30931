"""AdamW on flat lists of parameters, using torch's fused kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ablatrix.trainer.optimizers.base import Optimizer, Parameters

EPS = 1e-8


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019, algorithm 2).

    betas: decay rates of the running means of the gradient and of its square.
    """

    def __init__(
        self, parameters: Parameters, betas: tuple[float, float], weight_decay: float, grad_norm_clip: float = 0.0
    ) -> None:
        super().__init__(parameters, weight_decay, grad_norm_clip)
        self.betas = betas
        self.exp_avg = {name: torch.zeros_like(p) for name, p in self.named.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in self.named.items()}
        self.steps = torch.zeros((), dtype=torch.float32, device=self.device)

    def update(self, divisor: Tensor | None) -> None:
        self.steps += 1
        for names, weight_decay in self.groups_with_gradient():
            params: list[Any] = [self.named[name] for name in names]
            torch._fused_adamw_(
                params,
                [p.grad for p in params],
                [self.exp_avg[n] for n in names],
                [self.exp_avg_sq[n] for n in names],
                [],
                [self.steps] * len(params),
                lr=self.device_rate(),
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=weight_decay,
                eps=EPS,
                amsgrad=False,
                maximize=False,
                grad_scale=divisor,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}
