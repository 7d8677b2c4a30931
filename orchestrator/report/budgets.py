"""Values at equal budgets: each run and the baseline's run of the same seed, at the budget that both have spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ablatrix.orchestrator.report.statistics import Reach

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.collect import RunRecord

EQUAL = 1.001  # budgets within this factor count as equal

Axis = Callable[["RunRecord"], "np.ndarray | None"]  # what a run had spent at each of its evaluations, (E,)


def tokens(run: RunRecord) -> np.ndarray | None:
    """Return the training tokens at each evaluation."""
    return run.evaluations[0]


def seconds(step_seconds: Mapping[str, float | None]) -> Axis:
    """Return the axis of training time: steps times the seconds per step of the run's cell, not the run's own clock.

    step_seconds: seconds per step of each cell; a cell without them is not compared by time.
    """

    def spent(run: RunRecord) -> np.ndarray | None:
        each = step_seconds.get(run.cell)
        return None if each is None else run.evaluations[1] * each

    return spent


def flops(run: RunRecord) -> np.ndarray | None:
    """Return the training FLOPs at each evaluation, None if the model is unknown."""
    return run.evaluations[0] * run.flops_per_token if run.flops_per_token else None


@dataclass(frozen=True)
class Matched:
    """Values of all cells at equal budgets: cell -> seed -> value.

    values: each cell's values at its budget; comparable: the same values shifted by what the baseline's run of that
    seed gained after that budget, which makes the difference from the baseline's final value the effect; read_off:
    cells for which a value, their own or the baseline's, was interpolated on a curve.
    """

    values: dict[str, dict[int, float]] = field(default_factory=dict)
    comparable: dict[str, dict[int, float]] = field(default_factory=dict)
    read_off: frozenset[str] = frozenset()


def match(cells: Mapping[str, Sequence[RunRecord]], reference: str, axis: Axis, final: bool = False) -> Matched:
    """Return the values of usable runs at the budget spent by both the run and the baseline's run of the same seed.

    A run whose seed the baseline lacks is matched with all runs of the baseline. final: use the final value of a run
    whose budget is unknown; by default it has no value.
    """
    base = [Spent(run, axis(run)) for run in cells.get(reference, ())]
    by_seed = {b.run.seed: [b] for b in base}
    values: dict[str, dict[int, float]] = {reference: {b.run.seed: b.final for b in base}}
    comparable = {reference: values[reference]}
    read_off = set()
    for name, runs in cells.items():
        if name == reference:
            continue
        values[name], comparable[name] = {}, {}
        for run in runs:
            mine = Spent(run, axis(run))
            pair = _match_run(mine, by_seed.get(run.seed, base), final)
            if pair:
                values[name][run.seed], gain, exact = pair
                comparable[name][run.seed] = values[name][run.seed] - gain
                read_off |= set() if exact else {name}
    return Matched({n: values[n] for n in cells if n in values}, comparable, frozenset(read_off))


def _match_run(mine: Spent, others: Sequence[Spent], final: bool) -> tuple[float, float, bool] | None:
    """Return (value at the common budget, the baseline's value there minus its final one, True if both end there)."""
    known = [b for b in others if b.total is not None]
    if mine.total is None or not known:
        return (mine.final, 0.0, True) if final and others else None
    budget = min(mine.total, max(b.total for b in known if b.total is not None))
    value = mine.at(budget)
    gains = [there - b.final for b in known if (there := b.at(budget)) is not None]
    if value is None or not gains:
        return None
    exact = mine.ended(budget) and all(b.ended(budget) for b in known)
    return value, math.fsum(gains) / len(gains), exact


@dataclass
class Spent:
    """A usable run and what it had spent at each evaluation, (E,)."""

    run: RunRecord
    axis: np.ndarray | None
    total: float | None = field(init=False)  # what it spent in total, None if unknown

    def __post_init__(self) -> None:
        last = float(self.axis[-1]) if self.axis is not None and len(self.axis) else math.nan
        self.total = last if math.isfinite(last) else None

    @property
    def final(self) -> float:
        assert self.run.value is not None
        return self.run.value

    def ended(self, budget: float) -> bool:
        return self.total is None or self.total <= budget * EQUAL

    def at(self, budget: float) -> float | None:
        """Return its value at a budget: the final value at the end, otherwise interpolated on its curve."""
        if self.ended(budget) or self.axis is None:
            return self.final
        return interpolate(self.axis, self.run.evaluations[2], budget)


def interpolate(x: np.ndarray, y: np.ndarray, where: float) -> float | None:
    """Return y at `where`, None outside the points. x, y: (E,), x ascending.

    Between two points log y is linear in log x, which is exact for a power law; y is linear in x if a value is not
    positive.
    """
    if not len(x) or not x[0] <= where <= x[-1]:
        return None
    i = min(int(np.searchsorted(x, where, side="right")), len(x) - 1)
    if x[i - 1] > 0 and y[i - 1] > 0 and y[i] > 0:
        share = math.log(where / x[i - 1]) / math.log(x[i] / x[i - 1]) if x[i] > x[i - 1] else 1.0
        return float(y[i - 1] * (y[i] / y[i - 1]) ** share)
    return float(np.interp(where, x, y))


def first_reach(x: np.ndarray, y: np.ndarray, target: float) -> tuple[float, bool] | None:
    """Return (x at which the curve first falls to `target`, True if x is an upper bound); None if it never does.

    Interpolates like `interpolate`. If the first evaluation is already below the target, its x is an upper bound.
    """
    below = np.flatnonzero(y <= target)
    if not len(below):
        return None
    i = int(below[0])
    if i == 0 or y[i] == target:
        return float(x[i]), i == 0 and bool(y[i] < target)
    before, after = (float(x[i - 1]), float(y[i - 1])), (float(x[i]), float(y[i]))
    if before[0] > 0 and min(before[1], after[1], target) > 0:
        share = math.log(target / before[1]) / math.log(after[1] / before[1])
        return before[0] * (after[0] / before[0]) ** share, False
    return before[0] + (before[1] - target) / (before[1] - after[1]) * (after[0] - before[0]), False


@dataclass(frozen=True)
class Target:
    """The baseline's final values, as losses, and the costs of reaching them, by seed. mean: of the final values."""

    axis: Axis
    sign: float
    finals: Mapping[int, float]
    mean: float
    costs: Mapping[int, float]


def find_target(base: Sequence[RunRecord], axis: Axis, higher_is_better: bool) -> Target | None:
    """Return the target that cells have to reach; None if the baseline has no usable run."""
    if not base:
        return None
    sign, costs = -1.0 if higher_is_better else 1.0, {}
    finals = {run.seed: sign * run.value for run in base if run.value is not None}
    for run in base:
        x = axis(run)
        first = None if x is None else first_reach(x, sign * run.evaluations[2], finals[run.seed])
        if first is not None and np.isfinite(first[0]):
            costs[run.seed] = first[0]
    return Target(axis, sign, finals, math.fsum(finals.values()) / len(finals), costs)


def cost_to_baseline(runs: Sequence[RunRecord], target: Target | None) -> Reach | None:
    """Return the cost of reaching the baseline's final value of the same seed, or its mean if it lacks that seed."""
    if target is None:
        return None
    need: dict[int, float | None] = {}
    limit, at_most = {}, False
    for run in runs:
        spent = Spent(run, target.axis(run))
        if spent.total is None or spent.axis is None:
            continue
        found = first_reach(spent.axis, target.sign * run.evaluations[2], target.finals.get(run.seed, target.mean))
        need[run.seed], early = found or (None, False)
        limit[run.seed] = spent.total
        at_most = at_most or early
    return _summarize(need, limit, target.costs, at_most) if need else None


def _summarize(
    need: Mapping[int, float | None], limit: Mapping[int, float], baseline: Mapping[int, float], at_most: bool
) -> Reach:
    """Combine the seeds into a Reach. A censored seed counts with its limit, so the factor is an upper bound."""
    reached = tuple(v for _, v in sorted(need.items()) if v is not None)
    limits = tuple(limit[s] for s, v in sorted(need.items()) if v is None)
    logs = []
    for seed, value in need.items():
        mine = limit[seed] if value is None else value
        if seed in baseline and mine > 0 and baseline[seed] > 0:
            logs.append(math.log(baseline[seed] / mine))
    return Reach(reached, limits, math.exp(math.fsum(logs) / len(logs)) if logs else None, at_most)
