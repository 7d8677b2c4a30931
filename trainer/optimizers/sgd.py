"""Stochastic gradient descent with momentum, by torch's fused kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ablatrix.trainer.optimizers.base import Optimizer, Parameters


class SGD(Optimizer):
    """SGD with heavy-ball or Nesterov momentum (Sutskever et al. 2013), in the form that torch.optim.SGD gives it:

    g = gradient + weight_decay * w;  v = momentum * v + g;  w = w - lr * (g + momentum * v if nesterov else v).

    Weight decay is thus the L2 penalty of the literature on SGD, and passes through the momentum.
    """

    def __init__(
        self, parameters: Parameters, momentum: float, nesterov: bool, weight_decay: float, grad_norm_clip: float = 0.0
    ) -> None:
        super().__init__(parameters, weight_decay, grad_norm_clip)
        self.momentum, self.nesterov = momentum, nesterov
        self.velocity = {name: torch.zeros_like(p) for name, p in self.named.items()} if momentum else {}
        self.fused = self._has_kernel("_fused_sgd_")

    def update(self, too_large: Tensor | None) -> None:
        self._each_group(self._fused_update if self.fused else self._plain_update, too_large)

    def _fused_update(self, names: list[str], weight_decay: float, too_large: Tensor | None) -> None:
        params: list[Any] = [self.named[name] for name in names]
        torch._fused_sgd_(
            params,
            [p.grad for p in params],
            [self.velocity[name] for name in names] if self.momentum else [],
            weight_decay=weight_decay,
            momentum=self.momentum,
            lr=self._rate(),
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
            is_first_step=False,  # a velocity of 0 makes it one
            grad_scale=too_large,
        )

    def _plain_update(self, names: list[str], weight_decay: float, too_large: Tensor | None) -> None:
        params: list[Any] = [self.named[name] for name in names]
        change: Any = self._gradients(names, too_large)
        if weight_decay:
            change = torch._foreach_add(change, params, alpha=weight_decay)
        if self.momentum:
            velocity = [self.velocity[name] for name in names]
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, change)
            change = torch._foreach_add(change, velocity, alpha=self.momentum) if self.nesterov else velocity
        torch._foreach_add_(params, change, alpha=-self.learning_rate)

    def state_dict(self) -> dict[str, Any]:
        return {"velocity": self.velocity}
