"""Effects with intervals: paired t, prediction interval, Holm's correction, contrasts, censored times.

Pure functions of numbers; analysis.py applies them to cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit

LEVEL = 0.95
ALPHA = 0.05

Method = Literal["paired t", "prediction", "descriptive"]
Values = Mapping[int, float]  # seed -> value, usable runs only


@dataclass(frozen=True)
class Effect:
    """A difference in nats per token (negative: lower NLL, better) and what is known about it.

    n: runs of the cell in the mean; low, high: pointwise 95% interval, p: two-sided, of no difference; joint_low,
    joint_high, p_joint: the same, simultaneous over all comparisons of the table: the verdict. All six are None where
    nothing can be claimed. within: smallest margin d for which the simultaneous 90% interval lies in (-d, d) (TOST).
    paired: the same comparison without pooling, a paired t test whose p_joint is Holm's. without_outliers: the mean
    without the runs that were named as outliers, None if there is none. values: differences seed by seed.
    """

    mean: float
    n: int
    method: Method
    low: float | None = None
    high: float | None = None
    p: float | None = None
    seeds: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    joint_low: float | None = None
    joint_high: float | None = None
    p_joint: float | None = None
    within: float | None = None
    paired: Effect | None = None
    without_outliers: float | None = None

    @property
    def at_least(self) -> float | None:
        """The simultaneous bound that is nearer to 0, where the interval excludes 0."""
        if self.joint_low is None or self.joint_high is None or self.joint_low <= 0 <= self.joint_high:
            return None
        return min(self.joint_low, self.joint_high, key=abs)

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def joint_half_width(self) -> float | None:
        """Half of the simultaneous interval."""
        return None if self.joint_low is None or self.joint_high is None else (self.joint_high - self.joint_low) / 2

    @property
    def identical(self) -> bool:
        """Every pair is equal to the last digit: the two cells computed the same thing."""
        return self.method != "prediction" and bool(self.values) and all(v == 0 for v in self.values)


def t_interval(differences: Values) -> Effect | None:
    """Mean of paired differences with Student's t interval of n - 1 degrees of freedom (None without a pair).

    One pair gives a mean and no claim. Differences without any spread give an interval of width zero.
    """
    seeds = tuple(sorted(differences))
    values = tuple(float(differences[s]) for s in seeds)
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Effect(mean, 1, "descriptive", seeds=seeds, values=values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    low, high, p = _student(mean, math.sqrt(variance / len(values)), len(values) - 1)
    return Effect(mean, len(values), "paired t", low, high, p, seeds, values)


def prediction(cell: Values, baseline: Values) -> Effect | None:
    """Effect of a cell whose spread is unknown, judged by the spread of the baseline's seeds.

    With m values of the cell and k >= 2 of the baseline, of equal spread: mean difference +- t(k-1) s sqrt(1/m + 1/k).
    For m = 1 this is the classical prediction interval (Hahn & Meeker 1991, section 4.7). None where k < 2 or m = 0.
    """
    m, k = len(cell), len(baseline)
    if k < 2 or m < 1:
        return None
    centre = math.fsum(baseline.values()) / k
    spread = math.sqrt(math.fsum((v - centre) ** 2 for v in baseline.values()) / (k - 1))
    seeds = tuple(sorted(cell))
    values = tuple(float(cell[s]) - centre for s in seeds)
    mean = math.fsum(values) / m
    low, high, p = _student(mean, spread * math.sqrt(1 / m + 1 / k), k - 1)
    return Effect(mean, m, "prediction", low, high, p, seeds, values)


def _student(mean: float, error: float, df: int) -> tuple[float, float, float]:
    half = float(stdtrit(df, 0.5 + LEVEL / 2)) * error
    p = 2 * float(stdtr(df, -abs(mean) / error)) if error > 0 else float(mean == 0)
    return mean - half, mean + half, p


def difference(cell: Values, baseline: Values) -> Effect | None:
    """Cell minus baseline by the best method the runs allow; None where either has no usable run.

    Two or more common seeds: paired t. Else two or more baseline seeds: prediction. Else descriptive: no claim.
    """
    common = sorted(set(cell) & set(baseline))
    if len(common) >= 2:
        return t_interval({s: cell[s] - baseline[s] for s in common})
    predicted = prediction(cell, baseline)
    if predicted:
        return predicted
    if common:
        return t_interval({s: cell[s] - baseline[s] for s in common})
    if cell and baseline:
        gap = math.fsum(cell.values()) / len(cell) - math.fsum(baseline.values()) / len(baseline)
        return Effect(gap, min(len(cell), len(baseline)), "descriptive")
    return None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down corrected p values (Holm 1979), in the order given; None stays None and is not in the family."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = largest
    return corrected


def bonferroni(effects: Sequence[Effect | None]) -> list[Effect | None]:
    """Return the effects of one table with simultaneous intervals and p values after Bonferroni."""
    m = sum(e is not None and e.p is not None for e in effects)
    return [e and _adjust(e, m) for e in effects]


def _adjust(effect: Effect, m: int) -> Effect:
    if effect.half_width is None or effect.p is None:
        return effect
    df = max(effect.n - 1, 1)
    half = effect.half_width * float(stdtrit(df, 1 - ALPHA / (2 * m)) / stdtrit(df, 0.5 + LEVEL / 2))
    p = min(1.0, m * effect.p)
    return replace(effect, joint_low=effect.mean - half, joint_high=effect.mean + half, p_joint=p)


def contrast(cells: Mapping[str, Values], weights: Mapping[str, float]) -> Effect | None:
    """Sum of weight x value over cells, seed by seed, with its t interval; seeds that lack a cell are left out."""
    common = set.intersection(*(set(cells[name]) for name in weights)) if weights else set()
    return t_interval({s: math.fsum(w * cells[name][s] for name, w in weights.items()) for s in common})


@dataclass(frozen=True)
class FactorEffect:
    """A main effect (one factor) or pairwise interaction (two) in a factorial design.

    missing: comparisons left out, over all seeds, because a run of theirs has no usable value.
    """

    factors: tuple[str, ...]
    effect: Effect | None
    missing: int


def factorial(cells: Mapping[frozenset[str], Values], factors: Sequence[str]) -> list[FactorEffect]:
    """Main effects and pairwise interactions of a full two-level factorial design, paired by seed.

    Main effect of f: mean over the other factors of y(f on) - y(f off). Interaction of f and g: mean over the others of
    y(both) - y(f) - y(g) + y(neither), so that 0 means the effects add up (Box, Hunter & Hunter 2005, chapter 5, where
    it is halved). Comparisons with a missing run are left out and counted.
    """
    tables = {seed: _table(cells, factors, seed) for seed in sorted({s for v in cells.values() for s in v})}
    found = []
    for size in (1, 2):
        for axes in combinations(range(len(factors)), size):
            per_seed, missing = {}, 0
            for seed, table in tables.items():
                change = table
                for axis in axes:
                    change = np.diff(change, axis=axis)
                known = change[~np.isnan(change)]
                missing += change.size - known.size
                if known.size:
                    per_seed[seed] = float(known.mean())
            found.append(FactorEffect(tuple(factors[a] for a in axes), t_interval(per_seed), missing))
    return found


def _table(cells: Mapping[frozenset[str], Values], factors: Sequence[str], seed: int) -> np.ndarray:
    """Values of one seed, (2, ) * number of factors; nan where there is none."""
    table = np.full((2,) * len(factors), np.nan)
    for features, values in cells.items():
        if seed in values:
            table[tuple(int(f in features) for f in factors)] = values[seed]
    return table


def spread(values: Values) -> float | None:
    """Standard deviation over seeds (n - 1); None for fewer than two."""
    if len(values) < 2:
        return None
    mean = math.fsum(values.values()) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values.values()) / (len(values) - 1))


def smallest_provable(effect: Effect, family: int, power: float = 0.8) -> float | None:
    """The effect that a study like this one shows with probability `power` after correction for `family` comparisons.

    With the standard error found: (t(1 - alpha / 2m) + t(power)) x SE, an approximation. None without a spread.
    """
    if effect.half_width is None or effect.method != "paired t" or effect.half_width == 0:
        return None
    df = effect.n - 1
    error = effect.half_width / float(stdtrit(df, 0.5 + LEVEL / 2))
    return float(stdtrit(df, 1 - ALPHA / (2 * max(1, family))) + stdtrit(df, power)) * error


def at(x: np.ndarray, y: np.ndarray, where: float) -> float | None:
    """Return y at `where` by linear interpolation; None outside the points. x, y: (E,), x ascending."""
    if not len(x) or not x[0] <= where <= x[-1]:
        return None
    return float(np.interp(where, x, y))


def first_reach(x: np.ndarray, y: np.ndarray, target: float) -> float | None:
    """Return the x at which the curve first falls to `target`, by linear interpolation; None if it never does."""
    below = np.flatnonzero(y <= target)
    if not len(below):
        return None
    i = int(below[0])
    if i == 0 or y[i] == target:
        return float(x[i])
    share = (y[i - 1] - target) / (y[i - 1] - y[i])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))


@dataclass(frozen=True)
class Reach:
    """Cost of reaching a target, over seeds; `limits`: full cost of the runs that never did (right-censored)."""

    reached: tuple[float, ...] = ()
    limits: tuple[float, ...] = ()
    factor: float | None = None  # baseline's need / this cell's, geometric mean over seeds; over 1: sooner

    @property
    def censored(self) -> bool:
        return bool(self.limits)

    @property
    def mean(self) -> float | None:
        """Mean over seeds; with a censored one a lower bound."""
        every = self.reached + self.limits
        return math.fsum(every) / len(every) if every else None


def reach(need: Mapping[int, float | None], limit: Values, baseline: Values) -> Reach:
    """Summary of first_reach over the seeds of a cell.

    need: per seed, None where not reached within limit[seed]; baseline: the same quantity of the baseline. The factor
    takes `limit` for a censored seed, so it is then an upper bound.
    """
    reached = tuple(v for _, v in sorted(need.items()) if v is not None)
    limits = tuple(limit[s] for s, v in sorted(need.items()) if v is None)
    logs = []
    for seed, value in need.items():
        mine = limit[seed] if value is None else value
        if seed in baseline and mine > 0 and baseline[seed] > 0:
            logs.append(math.log(baseline[seed] / mine))
    return Reach(reached, limits, math.exp(math.fsum(logs) / len(logs)) if logs else None)
