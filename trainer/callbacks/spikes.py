"""Warnings about a run's curve while it is drawn. Free of torch."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ablatrix.trainer.rundir import loss_csv
from ablatrix.trainer.rundir.events import append_event

if TYPE_CHECKING:
    from pathlib import Path

    from ablatrix.trainer.callbacks.outputs import Guard
    from ablatrix.trainer.loop import Trainer

logger = logging.getLogger(__name__)

WINDOW = 64  # rows that a median is of
FEWEST = 8  # below which it says too little
NORMAL = 1.4826  # standard deviations of a normal distribution in its median absolute deviation


def median(values: Iterable[float]) -> float:
    """The lower one of two in the middle."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


class Spikes:
    """`on_row`: a gradient norm or a loss far above what it was lately is said in the log and in events.jsonl.

    grad_norm: how many running medians are too much. loss: how many deviations above its running median (1.4826 times
    the median absolute deviation: Rousseeuw & Croux 1993). 0: not watched. Said once, until a row is in order again.
    rows: of loss.csv so far; a resumed run warns as an undisturbed one.
    """

    def __init__(
        self, run_dir: Path, rows: Iterable[loss_csv.Row], guard: Guard, grad_norm: float = 10.0, loss: float = 10.0
    ) -> None:
        self.run_dir, self.guard = run_dir, guard
        self.factors = {name: k for name, k in (("grad_norm", grad_norm), ("loss", loss)) if k}
        self.lately: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in self.factors}
        self.told: set[str] = set()
        for row in rows:
            self._take(row)

    def __call__(self, trainer: Trainer) -> None:
        for name, value, usual in self._take(trainer.row):
            self.guard()
            rate = trainer.row["lr"]
            logger.warning(
                f"iter {trainer.iter}: {name} {value:.4g}, lately {usual:.4g} (lr {rate:.2e}); if this comes again and "
                "again: a smaller learning_rate, a longer warm-up, or a smaller grad_norm_clip"
            )
            fields = {"iter": trainer.iter, "what": name, "value": value, "median": usual, "lr": rate}
            append_event(self.run_dir, "spike", **fields)

    def _take(self, row: loss_csv.Row) -> list[tuple[str, float, float]]:
        """Remember a row; (name, value, running median) of what is new and out of order in it."""
        found = []
        for name, factor in self.factors.items():
            value, before = row.get(name), self.lately[name]
            if value is None or not math.isfinite(value):
                continue
            if len(before) >= FEWEST:
                usual = median(before)
                if value > self._limit(name, before, usual, factor):
                    if name not in self.told:
                        found.append((name, value, usual))
                    self.told.add(name)
                else:
                    self.told.discard(name)
            before.append(value)
        return found

    def _limit(self, name: str, before: deque[float], usual: float, factor: float) -> float:
        if name == "grad_norm":
            return factor * usual
        # a loss that stands still to the last digits must not make a spike of nothing
        deviation = max(NORMAL * median(abs(value - usual) for value in before), 0.01 * abs(usual))
        return usual + factor * deviation
