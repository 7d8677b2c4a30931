"""The best of a run's evaluations, and when there have been enough without a better one. Free of torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class Improvement:
    """What the evaluations of the held-out set have come to; part of every checkpoint.

    patience: evaluations without improvement that exhaust it; 0: any number. An improvement is a NLL that is more than
    `min_delta` nats per token below that of the improvement before (Prechelt 1998, "Early Stopping - But When?").
    """

    patience: int
    min_delta: float
    best: float = math.inf  # least NLL
    best_iter: int = 0  # after how many steps
    reference: float = math.inf  # NLL of the last improvement; with min_delta not always the least
    vain: int = 0  # evaluations since then

    def note(self, iteration: int, nll: float) -> None:
        """An evaluation after `iteration` steps. In every process of a run this must be the same number."""
        if nll < self.best:
            self.best, self.best_iter = nll, iteration
        if nll < self.reference - self.min_delta:
            self.reference, self.vain = nll, 0
        else:
            self.vain += 1

    @property
    def exhausted(self) -> bool:
        return 0 < self.patience <= self.vain

    def state(self) -> dict[str, Any]:
        """What `load` continues from."""
        return {name: value for name, value in asdict(self).items() if name not in ("patience", "min_delta")}

    def load(self, state: dict[str, Any]) -> None:
        for name in self.state():
            setattr(self, name, state[name])
