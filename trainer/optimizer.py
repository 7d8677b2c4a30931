"""AdamW on flat lists of parameters, with clipping by the global norm.

Not torch.optim.AdamW: creating one imports torch._dynamo, which alone takes as long as the rest of a short job's start.
The update is the same fused kernel; a test holds it to torch's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

EPS = 1e-8


def decaying(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """(name, parameter, whether weight decay applies) of every trainable parameter.

    minGPT's rule: matrices of linear maps decay; biases, norms and embeddings do not. Decided by shape and by the kind
    of the owning module, so that a new norm needs no entry anywhere. A matrix that two modules share comes once, as its
    first owner's: a head tied to the token embeddings does not decay.
    """
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                full = f"{prefix}.{name}" if prefix else name
                yield full, parameter, parameter.ndim >= 2 and not isinstance(module, nn.Embedding)


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) with decay on matrix weights only.

    betas: of the running means of the gradient and of its square. grad_norm_clip: largest global L2 norm of the
    gradient; 0: not clipped. `set_learning_rate` comes before every step.
    """

    def __init__(
        self, model: nn.Module, betas: tuple[float, float], weight_decay: float, grad_norm_clip: float = 0.0
    ) -> None:
        self.betas = betas
        self.learning_rate = 0.0
        self.grad_norm_clip = grad_norm_clip
        self.named: dict[str, nn.Parameter] = {}
        self.groups: list[tuple[list[str], float]] = [([], weight_decay), ([], 0.0)]
        for name, parameter, decays in decaying(model):
            self.named[name] = parameter
            self.groups[0 if decays else 1][0].append(name)
        self.exp_avg = {name: torch.zeros_like(p) for name, p in self.named.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in self.named.items()}
        self.device = next(iter(self.named.values())).device
        self.steps = torch.zeros((), dtype=torch.float32, device=self.device)
        # on the device, where a recorded step finds it
        self.rate = torch.zeros((), dtype=torch.float32, device=self.device)
        # the norm of all gradients from that of these: a model may be spread over several processes
        self.across: Callable[[Tensor], Tensor] = lambda norm: norm
        self.fused = hasattr(torch, "_fused_adamw_") and self.device.type in ("cpu", "cuda", "mps")

    def zero_grad(self) -> None:
        """Forget the gradients. Setting them to zero would walk through them once more, and so would adding to them."""
        for parameter in self.named.values():
            parameter.grad = None

    def set_learning_rate(self, learning_rate: float) -> None:
        """Of the steps to come."""
        self.learning_rate = learning_rate
        if self.device.type == "cuda":
            self.rate.fill_(learning_rate)

    @torch.no_grad()
    def step(self) -> Tensor:
        """Clip, update every parameter, and return the gradient's norm before clipping (a scalar on the device)."""
        grads = [p.grad for p in self.named.values() if p.grad is not None]
        norm = self.across(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
        too_large = self._too_large(norm)
        self.steps += 1
        for names, weight_decay in self.groups:
            names = [name for name in names if self.named[name].grad is not None]
            if names:
                update = self._fused_update if self.fused else self._plain_update
                update(names, weight_decay, too_large)
        return norm

    def _too_large(self, norm: Tensor) -> Tensor | None:
        """What the gradients are to be divided by; None: by nothing."""
        if not self.grad_norm_clip:
            return None
        # waiting for the value costs nothing on a CPU, and saves a division of everything where it is small
        if self.device.type == "cpu" and norm.item() <= self.grad_norm_clip:
            return None
        return ((norm + 1e-6) / self.grad_norm_clip).clamp(min=1.0)

    def _fused_update(self, names: list[str], weight_decay: float, too_large: Tensor | None) -> None:
        params: list[Any] = [self.named[name] for name in names]
        torch._fused_adamw_(
            params,
            [p.grad for p in params],
            [self.exp_avg[n] for n in names],
            [self.exp_avg_sq[n] for n in names],
            [],
            [self.steps] * len(params),
            lr=self.rate if self.device.type == "cuda" else self.learning_rate,
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
        grads: list[Any] = [p.grad for p in params]
        means, squares = [self.exp_avg[n] for n in names], [self.exp_avg_sq[n] for n in names]
        (beta1, beta2), step = self.betas, float(self.steps)
        if too_large is not None:
            torch._foreach_div_(grads, too_large)
        torch._foreach_mul_(params, 1 - self.learning_rate * weight_decay)
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, math.sqrt(1 - beta2**step))
        torch._foreach_add_(roots, EPS)
        torch._foreach_addcdiv_(params, means, roots, -self.learning_rate / (1 - beta1**step))

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on besides parameters and gradients; tensors are not copied."""
        return {"steps": self.steps, "exp_avg": self.exp_avg, "exp_avg_sq": self.exp_avg_sq}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a `state_dict()` in. Raises KeyError or RuntimeError where it is another model's."""
        self.steps.copy_(state["steps"])
        for name in self.named:
            self.exp_avg[name].copy_(state["exp_avg"][name])
            self.exp_avg_sq[name].copy_(state["exp_avg_sq"][name])
