"""Early stopping: best evaluation so far and patience counter. Torch-free."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Improvement:
    """The evaluations of the held-out set so far; part of every checkpoint.

    patience: evaluations without improvement that end the run; 0: any number. An improvement is a NLL more than
    `min_delta` nats per token below that of the last improvement (Prechelt 1998, "Early Stopping - But When?").
    """

    patience: int
    min_delta: float
    best: float = math.inf  # least NLL
    best_iter: int = 0  # after how many steps
    reference: float = math.inf  # NLL of the last improvement; with min_delta not always the least
    num_bad_evals: int = 0  # evaluations since then

    def note(self, iteration: int, nll: float) -> None:
        """Record an evaluation after `iteration` steps; all processes of a run must record the same."""
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
        """Return what `load` continues from."""
        return {name: value for name, value in asdict(self).items() if name not in ("patience", "min_delta")}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a `state()`. Raises KeyError if it is of another kind."""
        for name in self.state():
            setattr(self, name, state[name])
