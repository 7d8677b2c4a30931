"""A whole optimizer step as one CUDA graph: launching kernels dominates a small model's step on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ablatrix.trainer.optimizers import Optimizer

WARM_UP = 3  # steps before recording, which allocate, choose algorithms and compile

Step = Callable[[Tensor, Tensor], Tensor]


class GraphedStep:
    """Call `step(x, y)` -> (2,) loss and gradient norm on a CUDA device, replaying a graph from the fourth call on.

    Everything that a step reads besides x and y must be in tensors with fixed addresses, which holds for the learning
    rate (`optimizer.rate`), weights, moments and gradients. Random numbers follow torch.manual_seed in a replay, too.
    The result is overwritten by the next call.
    """

    def __init__(self, step: Step, optimizer: Optimizer, device: torch.device) -> None:
        self.step, self.optimizer, self.device = step, optimizer, device
        self.stream = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._on_side_stream(x, y)
        if self.graph is None:
            self._record(x, y)
        assert self.graph is not None
        self.x.copy_(x, non_blocking=True)
        self.y.copy_(y, non_blocking=True)
        self.graph.replay()
        return self.result

    def _on_side_stream(self, x: Tensor, y: Tensor) -> Tensor:
        """Do a step on a side stream, as recording requires."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = self.step(x, y)
        current.wait_stream(self.stream)
        return result

    def _record(self, x: Tensor, y: Tensor) -> None:
        """Record a step without executing it: the parameters do not change."""
        self.x, self.y = x.clone(), y.clone()
        self.optimizer.zero_grad()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.result = self.step(self.x, self.y)
