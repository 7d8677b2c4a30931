"""Data parallelism: every process has the whole model and a part of each batch (Li et al. 2020, "PyTorch Distributed").

DistributedDataParallel is not used: a process that runs out of memory must be able to tell the others before gradients
are exchanged, so there is no backward pass to overlap with; sums instead of means give the single-process gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ablatrix.models import cpu_kernels
from ablatrix.trainer.distributed.single import NLL, Array, Single

if TYPE_CHECKING:
    from ablatrix.trainer.config import RunConfig
    from ablatrix.trainer.distributed.process_group import ProcessGroup

SMALL = 1 << 18  # elements; gradients smaller than this are sent together


class DataParallel(Single):
    """Sum the gradients over all processes; then every process takes the same step."""

    name = "ddp"

    def __init__(self, config: RunConfig, device: torch.device, group: ProcessGroup) -> None:
        self.group, self.rank, self.world = group, group.rank, group.world
        self.shares = group.world
        cpu_kernels.take_share(group.rank, group.world)
        super().__init__(config, device)

    def share(self, windows: Array) -> Array:
        size = len(windows) // self.shares
        return windows[self.rank * size : (self.rank + 1) * size]

    def seed(self, value: int) -> None:
        # on a CPU each process takes its part of the same masks; elsewhere each draws masks for its own part only
        super().seed(value if self.device.type == "cpu" else value + self.rank)

    def reduce(self, loss: Tensor) -> Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return all_reduce_sum(self.group, gradients, loss)

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        return self.group.any(*flags)

    def evaluate(self, x: Array, y: Array, size: int, nll: NLL) -> Array:
        found = np.zeros(len(x))  # the sum below adds the other processes' windows
        for start in range(0, len(x), size)[self.rank :: self.world]:
            found[start : start + size] = nll(x[start : start + size], y[start : start + size])
        return self.group.sum(found)


def all_reduce_sum(group: ProcessGroup, tensors: list[Tensor], loss: Tensor) -> Tensor:
    """Replace each tensor with its sum over the processes, and return the sum of the loss."""
    small = [t for t in tensors if t.numel() < SMALL]
    waiting = [group.start_all_reduce(t) for t in tensors if t.numel() >= SMALL]
    together = torch.cat([t.flatten().float() for t in [*small, loss]])
    waiting.append(group.start_all_reduce(together))
    for work in waiting:
        group.wait(work)
    for tensor, total in zip(small, together.split([t.numel() for t in [*small, loss]])[:-1], strict=True):
        tensor.copy_(total.view_as(tensor))
    return together[-1].clone()
