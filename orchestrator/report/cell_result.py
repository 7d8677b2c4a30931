"""A cell of a study as the report sees it: its runs, its values, and how it compares with the baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import statistics as st
from ablatrix.orchestrator.report.decisions import Verdict
from ablatrix.orchestrator.status import device_hours
from ablatrix.orchestrator.study.metric import NLL, Measure

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.collect import RunRecord
    from ablatrix.orchestrator.report.documents import TextError
    from ablatrix.orchestrator.report.statistics import Effect, Reach
    from ablatrix.orchestrator.status.device_hours import Hours


@dataclass(frozen=True)
class CellResult:
    """A cell, its runs, and how it compares with the baseline (all effects None for the baseline itself).

    effect: at equal tokens, the headline result; equal_flops, equal_seconds: at equal training compute and time,
    interpolated on the curve of the measure; tokens_to, seconds_to: cost of reaching the baseline's final value.
    at_budget: seed -> value at the compared budget; read_off: True if that is not every run's final value, because the
    cell or the baseline trained on a different number of tokens; incomparable: why the values must not be compared.
    text_error: standard errors of the effect over seeds and over held-out documents.
    pending: why there is no verdict yet; step_seconds: basis of comparisons by time (step_times.py), None if there are
    none.
    """

    name: str
    features: tuple[str, ...]
    changes: tuple[str, ...]
    runs: tuple[RunRecord, ...]
    verdict: Verdict = Verdict.BASELINE
    effect: Effect | None = None
    equal_flops: Effect | None = None
    equal_seconds: Effect | None = None
    tokens_to: Reach | None = None
    seconds_to: Reach | None = None
    at_budget: Mapping[int, float] = field(default_factory=dict)
    read_off: bool = False
    incomparable: str = ""
    text_error: TextError | None = None
    pending: str = ""
    step_seconds: float | None = None
    study_measure: Measure = NLL

    @property
    def kind(self) -> str:
        """What its settings change, such as `model` or `learning rate and schedule`."""
        *first, last = self.changes or ("",)
        return f"{', '.join(first)} and {last}" if first else last

    @cached_property
    def usable(self) -> tuple[RunRecord, ...]:
        return tuple(run for run in self.runs if run.usable)

    @cached_property
    def values(self) -> dict[int, float]:
        """Seed -> final value of the runs that finished and did not diverge."""
        return {run.seed: run.value for run in self.usable if run.value is not None}

    @property
    def measure(self) -> Measure:
        """Measure of its values: the training loss for a command that reports no held-out loss."""
        training = self.usable and all(r.measure == "loss" for r in self.usable)
        return self.study_measure.on_training() if training else self.study_measure

    @property
    def done(self) -> int:
        return sum(run.finished for run in self.runs)

    @property
    def diverged(self) -> tuple[int, ...]:
        """Seeds whose runs diverged."""
        return tuple(run.seed for run in self.runs if run.diverged)

    @property
    def mean(self) -> float | None:
        """Mean of the final values."""
        return _mean(self.values)

    @property
    def mean_at_budget(self) -> float | None:
        """Mean at the compared budget, over the runs that enter the effect."""
        return _mean(self.at_budget)

    @cached_property
    def sd(self) -> float | None:
        return st.spread(self.values)

    @property
    def parameters(self) -> int | None:
        return next((run.parameters for run in self.runs if run.parameters), None)

    @property
    def flops_per_token(self) -> int | None:
        return next((run.flops_per_token for run in self.runs if run.flops_per_token), None)

    def average(self, name: str) -> float | None:
        """Return the mean of a number in summary.json over the finished runs that have it."""
        found = [v for run in self.runs if (v := run.number(name)) is not None]
        return sum(found) / len(found) if found else None

    @cached_property
    def seconds_per_run(self) -> float | None:
        """Training time of a run: its steps times the cell's seconds per step; None where time is not compared."""
        steps = self.average("iters")
        return steps * self.step_seconds if steps and self.step_seconds else None

    @property
    def tokens_per_second(self) -> float | None:
        tokens, seconds = self.average("tokens"), self.seconds_per_run
        return tokens / seconds if tokens and seconds else None

    @cached_property
    def hours(self) -> Hours:
        """GPU-hours or CPU-hours of all attempts at its runs."""
        return device_hours.total([use for run in self.runs for use in run.uses])


def _mean(values: Mapping[int, float]) -> float | None:
    return math.fsum(values.values()) / len(values) if values else None
