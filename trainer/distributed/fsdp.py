"""Fully sharded data parallelism, for models that do not fit on one device (Zhao et al. 2023, "PyTorch FSDP"; torch's
fully_shard, also called FSDP2).

Every process keeps a piece (a range of rows) of each parameter, its gradient and the optimizer's state. The parameters
of a block are gathered when it is computed, and freed afterwards. At the start, each process draws the whole model in
host memory; the device never holds more than the pieces and one whole block.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from ablatrix.models.gpt import GPT
from ablatrix.trainer.distributed.ddp import DataParallel, all_reduce_sum
from ablatrix.trainer.distributed.process_group import ProcessGroup, naming_lost_peers

if TYPE_CHECKING:
    from ablatrix.trainer.config import RunConfig
    from ablatrix.trainer.distributed.single import NLL, Array


class FullySharded(DataParallel):
    """`model` has DTensors as parameters; `trained` is a twin whose parameters are this process's pieces."""

    name = "fsdp"
    can_retry = False  # halfway through a block the other processes wait for this one

    def __init__(self, config: RunConfig, device: torch.device, group: ProcessGroup) -> None:
        self.mesh = init_device_mesh(device.type, (group.world,))
        super().__init__(config, device, group)
        self.sharded: dict[str, DTensor] = {n: cast("DTensor", p) for n, p in self.model.named_parameters()}
        self.trained = self._twin()
        self.pieces = dict(self.trained.named_parameters())

    def build(self) -> nn.Module:
        model = self.draw()
        for block in model.transformer.h:
            fully_shard(block, mesh=self.mesh)
        fully_shard(model, mesh=self.mesh)  # moves the remaining parameters to the device
        for name in ("loss", "token_losses"):
            register_fsdp_forward_method(model, name)
        for module in model.modules():
            if isinstance(module, FSDPModule):  # sum: the loss is already divided by the whole batch's tokens
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return model

    def _twin(self) -> nn.Module:
        """Return the same modules with pieces as parameters, because optimizers work on plain tensors."""
        twin = GPT(self.config.model, seed=None)
        sharded = dict(self.model.named_parameters(remove_duplicate=False))
        pieces: dict[int, nn.Parameter] = {}  # a single piece for parameters shared by two modules
        for prefix, module in twin.named_modules():
            for name, _ in list(module.named_parameters(recurse=False)):
                whole = sharded[f"{prefix}.{name}" if prefix else name]
                piece = pieces.setdefault(id(whole), nn.Parameter(whole.to_local().detach()))
                setattr(module, name, piece)
        return twin

    def reduce(self, loss: Tensor) -> Tensor:
        for name, whole in self.sharded.items():
            gradient = cast("DTensor | None", whole.grad)
            self.pieces[name].grad = None if gradient is None else gradient.to_local()
            whole.grad = None
        return all_reduce_sum(self.group, [], loss)

    def norm(self, norm: Tensor) -> Tensor:
        return all_reduce_sum(self.group, [], norm**2).sqrt()

    def evaluate(self, x: Array, y: Array, size: int, nll: NLL) -> Array:
        """Evaluate windows, with dummy ones where needed: all processes must gather the blocks equally often."""
        starts = range(0, len(x), size)
        mine, rounds = starts[self.rank :: self.world], starts[:: self.world]
        found = np.zeros(len(x))
        for start, _ in zip_longest(mine, rounds):
            if start is None:
                nll(x[:1], np.full_like(y[:1], -1))
            else:
                found[start : start + size] = nll(x[start : start + size], y[start : start + size])
        return self.group.sum(found)

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        with naming_lost_peers():
            return {key: self._whole(key, value) for key, value in state.items()}

    def _whole(self, key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._whole(name, inner) for name, inner in value.items()}
        if isinstance(value, DTensor):
            found = value.full_tensor()
        elif key in self.sharded and value.shape == self.pieces[key].shape:
            like = self.sharded[key]
            found = DTensor.from_local(
                value, self.mesh, [Shard(0)], run_check=False, shape=like.shape, stride=like.stride()
            ).full_tensor()
        else:
            return value
        return found.detach().cpu() if self.rank == 0 else None

    @torch.no_grad()
    def load_model(self, state: dict[str, Tensor]) -> None:
        for name, value in self.model.state_dict().items():
            target = value.to_local() if isinstance(value, DTensor) else value
            target.copy_(self._piece(name, state[name]))

    def local(self, state: dict[str, Any]) -> dict[str, Any]:
        return {key: self._piece(key, value) for key, value in state.items()}

    def _piece(self, key: str, value: Any) -> Any:
        """Return this process's rows of a value that has a parameter's name and shape; other values unchanged."""
        if isinstance(value, dict):
            return self.local(value)
        if key not in self._names or value.shape != self._names[key]:
            return value
        rows = -(-value.shape[0] // self.world)
        return value[self.rank * rows : (self.rank + 1) * rows]

    @property
    def _names(self) -> dict[str, torch.Size]:
        """Return the shapes of the whole parameters; shared ones appear under each of their names."""
        return {name: p.shape for name, p in self.model.named_parameters(remove_duplicate=False)}
