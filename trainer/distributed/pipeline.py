"""Pipeline parallelism: every process has some of the layers, and microbatches of a batch go through them in parallel.

GPipe (Huang et al. 2019) runs all microbatches forward and then all backward; 1F1B (Narayanan et al. 2019, "PipeDream";
its synchronous form) starts backward passes as soon as possible, and stores activations of fewer microbatches. Both
compute the gradient of the whole batch. With several stages per process, 1F1B is interleaved (Narayanan et al. 2021,
"Efficient large-scale language model training"): stage i is on process i % world, and processes idle less at the start
and end of a batch. The schedules are torch's (torch.distributed.pipelining).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from ablatrix.models import cpu_kernels
from ablatrix.models.config import ResolvedGPTConfig
from ablatrix.models.head_loss import head_loss, token_losses
from ablatrix.trainer.config.parallelism import microbatches
from ablatrix.trainer.device import autocast
from ablatrix.trainer.distributed.ddp import all_reduce_sum
from ablatrix.trainer.distributed.process_group import ProcessGroup, naming_lost_peers
from ablatrix.trainer.distributed.single import NLL, Array, Autocast, Single, sum_windows

if TYPE_CHECKING:
    from ablatrix.models.gpt import GPT
    from ablatrix.trainer.config import RunConfig

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


def split(config: RunConfig, stages: int) -> list[range]:
    """Return the layers of each stage: those of trainer.pipeline_split, or a split into stages of about equal time.

    Each stage has at least one layer; the last one also has the output head, which costs as much as many layers.
    """
    if config.trainer.pipeline_split:
        return _ranges(config.trainer.pipeline_split)
    model = ResolvedGPTConfig.of(config.model)
    n_layer = model.n_layer
    head = model.vocab_size / (12 * model.n_embd)  # in layers of 12 n_embd^2 weights; the head has vocab_size * n_embd

    # the fastest split; among equally fast splits, the one with the fewest layers next to the head
    sizes = range(1, n_layer - stages + 2)
    last = min(sizes, key=lambda last: max(last + head, -(-(n_layer - last) // (stages - 1))))
    most, more = divmod(n_layer - last, stages - 1)
    return _ranges([most + (i < more) for i in range(stages - 1)] + [last])


def _ranges(sizes: Sequence[int]) -> list[range]:
    return [range(sum(sizes[:i]), sum(sizes[: i + 1])) for i in range(len(sizes))]


class Stage(nn.Module):
    """Some layers of a model: tokens (B, T) or features (B, T, C) -> features (B, T, C). number: index of the stage."""

    def __init__(self, model: GPT, number: int, layers: range, stages: int) -> None:
        super().__init__()
        self.model, self.number, self.layers = model, number, layers
        self.first, self.last = number == 0, number == stages - 1

    def forward(self, x: Tensor) -> Tensor:
        transformer: Any = self.model.transformer
        if self.first:
            x = transformer.embed(x)
        for layer in self.layers:
            x = transformer.h[str(layer)](x)
        return transformer.ln_f(x) if self.last else x


class Pipeline(Single):
    """`model` has only this process's layers, under their names in the whole model."""

    name = "pipeline"
    can_retry = False  # neighboring processes wait for this one

    def __init__(self, config: RunConfig, device: torch.device, group: ProcessGroup) -> None:
        self.group, self.rank, self.world = group, group.rank, group.world
        self.first, self.last = group.rank == 0, group.rank == group.world - 1
        self.stages = group.world * config.trainer.pipeline_stages_per_rank
        self.layers = dict(list(enumerate(split(config, self.stages)))[group.rank :: group.world])
        self.divisor: float | Tensor = 1.0
        cpu_kernels.take_share(0, 1)
        super().__init__(config, device)
        self.parts = [Stage(self.model, number, layers, self.stages) for number, layers in self.layers.items()]
        self.schedule = self._schedule()

    def build(self) -> nn.Module:
        model = self.draw()
        self.order = {name: index for index, name in enumerate(model.state_dict())}
        transformer: Any = model.transformer
        transformer.h = nn.ModuleDict({str(i): transformer.h[i] for part in self.layers.values() for i in part})
        if not self.first:
            transformer.wte = transformer.wpe = None
        if not self.last:
            transformer.ln_f = model.lm_head = None  # type: ignore[assignment]
        return model.to(self.device)

    def _schedule(self) -> Any:
        pieces = microbatches(self.config, self.world)
        windows, length = self.config.trainer.batch_size // pieces, self.config.data.block_size
        tokens = torch.empty(windows, length, dtype=torch.int64, device="meta")
        features = torch.empty(windows, length, self.config.model.n_embd or 0, device="meta").requires_grad_()
        stages = [
            PipelineStage(
                part,
                part.number,
                self.stages,
                self.device,
                input_args=tokens if part.first else features.detach().requires_grad_(),
                output_args=features,
            )
            for part in self.parts
        ]
        if len(stages) > 1:
            return ScheduleInterleaved1F1B(stages, pieces, loss_fn=self._loss, scale_grads=False)  # type: ignore[arg-type]
        schedule = SCHEDULES[self.config.trainer.pipeline_schedule]
        return schedule(stages[0], pieces, loss_fn=self._loss, scale_grads=False)

    def _loss(self, x: Tensor, y: Tensor) -> Tensor:
        return head_loss(x.flatten(0, 1), self.model.lm_head.weight, y.flatten(), self.divisor, self.model.pointwise)

    def seed(self, value: int) -> None:
        super().seed(value + self.rank)  # so that layers of different stages draw different masks

    def gradients(self, x: Tensor, y: Tensor, divisor: float | Tensor, autocast: Autocast) -> Tensor:
        self.divisor = divisor
        losses: list[Tensor] = []
        with autocast(), naming_lost_peers():
            if self.last:
                self.schedule.step(target=y, losses=losses, return_outputs=False)
            else:
                self.schedule.step(*([x] if self.first else []), return_outputs=False)
        if not self.last:
            return torch.zeros((), device=self.device)
        return torch.stack([loss.detach() for loss in losses]).sum()

    def reduce(self, loss: Tensor) -> Tensor:
        return all_reduce_sum(self.group, [], loss)

    def norm(self, norm: Tensor) -> Tensor:
        return all_reduce_sum(self.group, [], norm**2).sqrt()

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        return self.group.any(*flags)

    def evaluate(self, x: Array, y: Array, size: int, nll: NLL) -> Array:
        found = np.zeros(len(x))
        with autocast(self.config.trainer.dtype, self.device), naming_lost_peers():
            for start in range(0, len(x), size):
                found[start : start + size] = self._nll(x[start : start + size], y[start : start + size])
        return self.group.sum(found)

    def _nll(self, x: Array, y: Array) -> Array | float:
        """Return the NLL of each window (B,) on the last process, and 0 on the others, which only pass features on."""
        for part in self.parts:
            if part.first:
                features = torch.from_numpy(x).to(self.device)
            else:
                features = torch.empty(*x.shape, self.config.model.n_embd or 0, device=self.device)
                dist.recv(features, (self.rank - 1) % self.world)
            features = part(features)
            if part.last:
                targets = torch.from_numpy(y).to(self.device)
                losses = token_losses(features.flatten(0, 1), self.model.lm_head.weight, targets.flatten())
                return sum_windows(losses.view(targets.shape))
            dist.send(features.float().contiguous(), (self.rank + 1) % self.world)
        return 0.0

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for part in self.group.gather(_on_cpu(state)):
            _merge(merged, part)
        return _sorted(merged, self.order)

    def load_model(self, state: dict[str, Tensor]) -> None:
        self.model.load_state_dict({name: state[name] for name in self.model.state_dict()})


def _on_cpu(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _on_cpu(value) for key, value in tree.items()}
    return tree.detach().cpu() if isinstance(tree, Tensor) else tree


def _merge(into: dict[str, Any], part: dict[str, Any]) -> None:
    """Add the entries of `part` that `into` lacks."""
    for key, value in part.items():
        if isinstance(value, dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into.setdefault(key, value)


def _sorted(tree: dict[str, Any], order: dict[str, int]) -> dict[str, Any]:
    """Return the tree with parameters in the order of the whole model."""
    return {
        key: _sorted(tree[key], order) if isinstance(tree[key], dict) else tree[key]
        for key in sorted(tree, key=lambda key: order.get(key, -1))
    }
