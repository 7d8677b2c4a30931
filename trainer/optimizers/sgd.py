"""Stochastic gradient descent with momentum, using torch's fused kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ablatrix.trainer.optimizers.base import Optimizer, Parameters


class SGD(Optimizer):
    """SGD with heavy-ball or Nesterov momentum (Sutskever et al. 2013), as torch.optim.SGD defines it:

    g = gradient + weight_decay * w;  v = momentum * v + g;  w = w - lr * (g + momentum * v if nesterov else v).

    Weight decay is thus an L2 penalty, as usual for SGD, and goes through the momentum.
    """

    def __init__(
        self, parameters: Parameters, momentum: float, nesterov: bool, weight_decay: float, grad_norm_clip: float = 0.0
    ) -> None:
        super().__init__(parameters, weight_decay, grad_norm_clip)
        self.momentum, self.nesterov = momentum, nesterov
        self.velocity = {name: torch.zeros_like(p) for name, p in self.named.items()} if momentum else {}

    def update(self, divisor: Tensor | None) -> None:
        for names, weight_decay in self.groups_with_gradient():
            params: list[Any] = [self.named[name] for name in names]
            torch._fused_sgd_(
                params,
                [p.grad for p in params],
                [self.velocity[name] for name in names] if self.momentum else [],
                weight_decay=weight_decay,
                momentum=self.momentum,
                lr=self.device_rate(),
                dampening=0.0,
                nesterov=self.nesterov,
                maximize=False,
                is_first_step=False,  # the velocity starts at 0
                grad_scale=divisor,
            )

    def state_dict(self) -> dict[str, Any]:
        return {"velocity": self.velocity}
