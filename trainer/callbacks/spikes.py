"""Warnings about spikes in the loss and the gradient norm during training. Torch-free."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable
from statistics import median_low
from typing import TYPE_CHECKING

from ablatrix.trainer.callbacks.base import Callback
from ablatrix.trainer.rundir.events import append_event

if TYPE_CHECKING:
    from ablatrix.trainer.loop import Trainer
    from ablatrix.trainer.rundir.attempts import Attempt
    from ablatrix.trainer.rundir.loss_csv import Row

logger = logging.getLogger(__name__)

WINDOW = 64  # rows in the running median
FEWEST = 8  # rows required before the median is used
NORMAL = 1.4826  # ratio of standard deviation to median absolute deviation for a normal distribution


class Spikes(Callback):
    """Report a gradient norm or loss far above its running median in the log and in events.jsonl.

    grad_norm: threshold as a multiple of the running median. loss: threshold in deviations above the running median
    (1.4826 times the median absolute deviation: Rousseeuw & Croux 1993). 0 disables either. A spike is reported once,
    until a row is normal again. rows: rows of loss.csv so far, so that a resumed run warns like an uninterrupted one.
    """

    priority = 80

    def __init__(self, attempt: Attempt, rows: Iterable[Row], grad_norm: float = 10.0, loss: float = 10.0) -> None:
        self.attempt = attempt
        self.factors = {name: k for name, k in (("grad_norm", grad_norm), ("loss", loss)) if k}
        self.recent: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in self.factors}
        self.reported: set[str] = set()
        for row in rows:
            self._add(row)

    def on_row(self, trainer: Trainer) -> None:
        for name, value, usual in self._add(trainer.row):
            self.attempt.require()
            rate = trainer.row["lr"]
            logger.warning(
                f"iter {trainer.iter}: {name} {value:.4g}, recently {usual:.4g} (lr {rate:.2e}); if this recurs, try "
                "a smaller learning_rate, a longer warm-up, or a smaller grad_norm_clip"
            )
            fields = {"iter": trainer.iter, "what": name, "value": value, "median": usual, "lr": rate}
            append_event(self.attempt.run_dir, "spike", **fields)

    def _add(self, row: Row) -> list[tuple[str, float, float]]:
        """Add a row to the history; return (name, value, running median) of each new spike in it."""
        found = []
        for name, factor in self.factors.items():
            value, before = row.get(name), self.recent[name]
            if value is None or not math.isfinite(value):
                continue
            if len(before) >= FEWEST:
                usual = median_low(before)
                if value > _limit(name, before, usual, factor):
                    if name not in self.reported:
                        found.append((name, value, usual))
                    self.reported.add(name)
                else:
                    self.reported.discard(name)
            before.append(value)
        return found


def _limit(name: str, before: deque[float], usual: float, factor: float) -> float:
    if name == "grad_norm":
        return factor * usual
    # at least 1% of the median, so that noise in the last digits of a constant loss is not a spike
    deviation = max(NORMAL * median_low(abs(value - usual) for value in before), 0.01 * abs(usual))
    return usual + factor * deviation
