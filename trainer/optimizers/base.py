"""Base class of all optimizers: which weights decay, clipping by global norm, learning rate, saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Parameters = Iterable[tuple[str, nn.Parameter, bool]]  # name, parameter, whether weight decay applies


def decaying(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Yield (name, parameter, whether weight decay applies) once for every trainable parameter.

    minGPT's rule: matrices of linear layers decay; biases, norms and embeddings do not. This goes by shape and by the
    type of the owning module, so that a new norm needs no registration. A matrix shared by two modules is yielded once,
    for its first owner: a head tied to the token embeddings does not decay.
    """
    seen: set[nn.Parameter] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                full = f"{prefix}.{name}" if prefix else name
                yield full, parameter, parameter.ndim >= 2 and not isinstance(module, nn.Embedding)


class Optimizer:
    """Interface: `zero_grad`, `set_learning_rate` before every step, `step`, `state_dict`, `load_state_dict`.

    weight_decay: applied to parameters that decay. grad_norm_clip: largest global L2 norm of the gradient; 0: no
    clipping. A subclass implements `update` and `state_dict`; both stay on the device, without reading numbers back, so
    that a step can be recorded as a CUDA graph.
    """

    def __init__(self, parameters: Parameters, weight_decay: float, grad_norm_clip: float = 0.0) -> None:
        self.grad_norm_clip = grad_norm_clip
        self.learning_rate = 0.0
        self.named: dict[str, nn.Parameter] = {}
        self.groups: list[tuple[list[str], float]] = [([], weight_decay), ([], 0.0)]
        for name, parameter, decays in parameters:
            self.named[name] = parameter
            self.groups[0 if decays else 1][0].append(name)
        self.device = next(iter(self.named.values())).device
        self.rate = torch.zeros((), dtype=torch.float32, device=self.device)  # read by steps in a CUDA graph
        # maps the norm of these gradients to the norm of all gradients, as the model may span several processes
        self.across: Callable[[Tensor], Tensor] = lambda norm: norm

    def zero_grad(self) -> None:
        """Drop the gradients, which is cheaper than setting them to zero and accumulating."""
        for parameter in self.named.values():
            parameter.grad = None

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate for the following steps."""
        self.learning_rate = learning_rate
        if self.device.type == "cuda":
            self.rate.fill_(learning_rate)

    @torch.no_grad()
    def step(self) -> Tensor:
        """Clip, update every parameter, and return the gradient norm before clipping (a scalar on the device)."""
        grads = [p.grad for p in self.named.values() if p.grad is not None]
        norm = self.across(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
        self.update(self._clip_divisor(norm))
        return norm

    def update(self, divisor: Tensor | None) -> None:
        """Update the parameters that have a gradient, after dividing gradients by `divisor` (None: no division)."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return everything besides parameters and gradients that the next step depends on; tensors are not copied.

        Each value is a scalar tensor or a mapping from parameter name to tensor.
        """
        raise NotImplementedError

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy in a `state_dict()`. Raises KeyError or RuntimeError if it belongs to a different model."""
        _copy(self.state_dict(), state)

    def groups_with_gradient(self) -> Iterator[tuple[list[str], float]]:
        """Yield (names, weight decay) for the parameters that have a gradient."""
        for names, weight_decay in self.groups:
            if live := self.with_gradient(names):
                yield live, weight_decay

    def with_gradient(self, names: list[str]) -> list[str]:
        """Return the names whose parameters have a gradient."""
        return [name for name in names if self.named[name].grad is not None]

    def divided_gradients(self, names: list[str], divisor: Tensor | None) -> list[Any]:
        """Return the gradients of these parameters, divided in place."""
        grads: list[Any] = [self.named[name].grad for name in names]
        if grads and divisor is not None:
            torch._foreach_div_(grads, divisor)
        return grads

    def device_rate(self) -> Any:
        """Return the learning rate: a scalar tensor on cuda, else a number."""
        return self.rate if self.device.type == "cuda" else self.learning_rate

    def _clip_divisor(self, norm: Tensor) -> Tensor | None:
        """Return the divisor that clips the gradients, None if no clipping is needed."""
        if not self.grad_norm_clip:
            return None
        # reading the value costs nothing on a CPU, and avoids dividing all gradients if the norm is small
        if self.device.type == "cpu" and norm.item() <= self.grad_norm_clip:
            return None
        return ((norm + 1e-6) / self.grad_norm_clip).clamp(min=1.0)


def _copy(into: dict[str, Any], state: dict[str, Any]) -> None:
    for name, value in into.items():
        if isinstance(value, dict):
            _copy(value, state[name])
        else:
            value.copy_(state[name])
