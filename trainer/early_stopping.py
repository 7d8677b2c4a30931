"""Early stopping: the best evaluation so far and a patience counter. Torch-free."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Improvement:
    """Tracks the evaluations of the held-out set; part of every checkpoint.

    patience: number of evaluations without improvement after which the run ends; 0: never. An improvement is an NLL
    more than `min_delta` nats per token below the last improvement (Prechelt 1998, "Early Stopping - But When?").
    """

    patience: int
    min_delta: float
    best: float = math.inf  # lowest NLL
    best_iter: int = 0  # step of the lowest NLL
    reference: float = math.inf  # NLL of the last improvement; with min_delta not always the lowest
    num_bad_evals: int = 0  # evaluations since the last improvement

    def note(self, iteration: int, nll: float) -> None:
        """Record an evaluation after `iteration` steps; all processes of a run must record the same value."""
        if nll < self.best:
            self.best, self.best_iter = nll, iteration
        if nll < self.reference - self.min_delta:
            self.reference, self.num_bad_evals = nll, 0
        else:
            self.num_bad_evals += 1

    @property
    def exhausted(self) -> bool:
        """True if the run must end."""
        return 0 < self.patience <= self.num_bad_evals

    def state(self) -> dict[str, Any]:
        """Return the state for `load`."""
        return {name: value for name, value in asdict(self).items() if name not in ("patience", "min_delta")}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a `state()`. Raises KeyError if entries are missing."""
        for name in self.state():
            setattr(self, name, state[name])
