"""A single process with the whole model; the other strategies override parts of this one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ablatrix.models.custom import ComponentError
from ablatrix.models.gpt import GPT
from ablatrix.trainer import initial_weights
from ablatrix.trainer.device import seed_generators
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ablatrix.trainer.config import RunConfig

Array = np.ndarray[Any, Any]
Autocast = Callable[[], AbstractContextManager[Any]]
NLL = Callable[[Array, Array], Array]  # (windows, targets), (B, T) each -> NLL summed over each window, (B,) float64


def sum_windows(losses: Tensor) -> Array:
    """Return the sum of the losses (B, T) over each window, (B,) float64."""
    sums: Array = losses.cpu().double().sum(1).numpy()  # not every device supports float64
    return sums


class Single:
    """The share of one process in a run: here, all of it.

    `model` is the module that this process computes with; `trained` is the module with the parameters that its
    optimizer updates, under their names in the whole model.
    """

    name = "single"
    rank, world = 0, 1
    shares = 1  # number of parts that a batch is split into, one per process
    can_retry = True  # whether a step can be retried after a failed allocation, as no other process waits for it

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.model: Any = self.build().train()
        if config.data.document_mask:
            assert config.data.separator is not None  # set in every resolved configuration
            cast("GPT", self.model).mask_documents(config.data.separator)
        if config.trainer.activation_checkpointing:
            cast("GPT", self.model).recompute_blocks()
        self.trained: nn.Module = self.model

    def build(self) -> nn.Module:
        """Return the model of this process. Raises UserError if a custom component cannot be used."""
        try:
            return self.draw().to(self.device)
        except ComponentError as error:
            raise UserError(str(error)) from error

    def draw(self) -> GPT:
        """Return the whole model on the CPU, with initial weights drawn from the seed or loaded as `init_from` says."""
        model = GPT(self.config.model, seed=self.config.system.seed)
        if self.config.model.init_from:
            initial_weights.load_initial(model, self.config, quiet=self.rank > 0)
        return model

    def share(self, windows: Array) -> Array:
        """Return this process's share of a batch, (B, T) -> (B / shares, T)."""
        return windows

    def seed(self, value: int) -> None:
        """Seed the default generators, which dropout uses, before a step. value: the same in all processes."""
        seed_generators(value, self.device)

    def gradients(self, x: Tensor, y: Tensor, divisor: float | Tensor, autocast: Autocast) -> Tensor:
        """Add the gradient of the summed loss / divisor to the parameters' gradients; return that loss, a scalar."""
        with autocast():
            loss: Tensor = self.model.loss(x, y, divisor=divisor)
        loss.backward()
        return loss.detach()

    def reduce(self, loss: Tensor) -> Tensor:
        """Complete the gradients after the last part of a batch; return the loss over the whole batch."""
        return loss

    def norm(self, norm: Tensor) -> Tensor:
        """Return the global gradient norm, given the norm over the parameters of `trained`."""
        return norm

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, whether any process has raised it. Every process must call this."""
        return flags

    def evaluate(self, x: Array, y: Array, size: int, nll: NLL) -> Array:
        """Return the NLL of each window, (N,) float64, calling `nll` with at most `size` windows at a time."""
        found = np.zeros(len(x))
        for start in range(0, len(x), size):
            found[start : start + size] = nll(x[start : start + size], y[start : start + size])
        return found

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the state dict of `model` or of the optimizer as a single process would have it.

        Every process must call this; only rank 0's result is complete.
        """
        return state

    def load_model(self, state: dict[str, Tensor]) -> None:
        """Load the weights from the whole model's state dict."""
        self.model.load_state_dict(state)

    def local(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return this process's part of the optimizer's whole state; the inverse of `whole`."""
        return state
