"""One process that holds the whole model; the other strategies are written as differences from it."""

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
NLL = Callable[[Array, Array], Array]  # of windows (B, T) and their targets: summed over each window, (B,) float64


def sum_windows(losses: Tensor) -> Array:
    """Return the sums of losses (B, T) over each window, (B,) float64."""
    sums: Array = losses.cpu().double().sum(1).numpy()  # not every device has float64
    return sums


class Single:
    """The part of one process in a run: here everything.

    `model` is what this process computes with; `trained` the module that holds the parameters which its optimizer
    changes, under the names that they have in the whole model.
    """

    name = "single"
    rank, world = 0, 1
    shares = 1  # that a batch is cut into, one for each process
    can_retry = True  # after a failed allocation, without others waiting for what was not computed

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.model: Any = self.build().train()
        if config.data.document_mask:
            assert config.data.separator is not None  # of a resolved configuration
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
        """Return the whole model with its initial weights, on the CPU: drawn from the seed, or as `init_from` says."""
        model = GPT(self.config.model, seed=self.config.system.seed)
        if self.config.model.init_from:
            initial_weights.load_initial(model, self.config, quiet=self.rank > 0)
        return model

    def share(self, windows: Array) -> Array:
        """Return this process's part of a batch, (B, T) -> (B / shares, T)."""
        return windows

    def seed(self, value: int) -> None:
        """Seed the default generators, which dropout draws from, before a step. value: the same in all processes."""
        seed_generators(value, self.device)

    def gradients(self, x: Tensor, y: Tensor, divisor: float | Tensor, autocast: Autocast) -> Tensor:
        """Add the gradient of the summed loss / divisor to the parameters' and return that loss, a scalar."""
        with autocast():
            loss: Tensor = self.model.loss(x, y, divisor=divisor)
        loss.backward()
        return loss.detach()

    def reduce(self, loss: Tensor) -> Tensor:
        """Complete the gradients after the last part of a batch; return the loss of the whole batch."""
        return loss

    def norm(self, norm: Tensor) -> Tensor:
        """Return the gradient's global norm from that of `trained`."""
        return norm

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Return each flag as raised by any of the processes. Every process must call it."""
        return flags

    def evaluate(self, x: Array, y: Array, size: int, nll: NLL) -> Array:
        """Return the NLL of each window, (N,) float64, by calling `nll` with at most `size` of them."""
        found = np.zeros(len(x))
        for start in range(0, len(x), size):
            found[start : start + size] = nll(x[start : start + size], y[start : start + size])
        return found

    def whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the state dict of `model` or of the optimizer, as one process would have it.

        Every process must call it; only that of rank 0 is complete.
        """
        return state

    def load_model(self, state: dict[str, Tensor]) -> None:
        """Set the weights from the whole model's state dict."""
        self.model.load_state_dict(state)

    def local(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return this process's part of the optimizer's whole state: the inverse of `whole`."""
        return state
