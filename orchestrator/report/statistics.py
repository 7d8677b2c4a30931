"""Effects with intervals: Student's t, Holm's correction, the cost of reaching a value.

Pure functions of numbers; analysis.py applies them to cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import stdev
from typing import Literal

from scipy.special import stdtr, stdtrit

LEVEL = 0.95
ALPHA = 0.05

Method = Literal["pooled", "paired t", "unpaired", "identical", "descriptive"]
Values = Mapping[int, float]  # seed -> value, usable runs only


@dataclass(frozen=True)
class Effect:
    """A difference in nats per token (negative: lower NLL, better) and what is known about it.

    n: number of runs of the cell averaged; low, high: pointwise 95% interval; p: two-sided, for no difference;
    joint_low, joint_high, p_joint: simultaneous over all comparisons of the table, which decide the verdict. All six
    are None if nothing can be claimed. alpha: error rate of the simultaneous interval, 0.05 or a planned look's.
    within: smallest margin d for which the simultaneous interval of 1 - 2 alpha lies in (-d, d) (TOST). paired: the
    same comparison without pooling, a paired t test whose p_joint is Holm-corrected. without_outliers: the mean without
    the runs reported as outliers, None if there are none. values: differences, one per seed.
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
    df: float | None = None
    paired: Effect | None = None
    without_outliers: float | None = None
    alpha: float = ALPHA

    @property
    def at_least(self) -> float | None:
        """The simultaneous bound nearer to 0, None unless the interval excludes 0."""
        if self.joint_low is None or self.joint_high is None or self.joint_low <= 0 <= self.joint_high:
            return None
        return min(self.joint_low, self.joint_high, key=abs)

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def with_intervals(self, error: float, df: float, critical: float, p_joint: float, alpha: float) -> Effect:
        """Return the effect with its intervals and p values.

        error: standard error with `df` degrees of freedom; critical: half-width of the simultaneous interval of
        1 - alpha, in standard errors.
        """
        low, high, p = student(self.mean, error, df)
        joint = critical * error
        return replace(
            self,
            low=low,
            high=high,
            p=p,
            joint_low=self.mean - joint,
            joint_high=self.mean + joint,
            p_joint=p_joint,
            df=df,
            alpha=alpha,
        )

    @property
    def error(self) -> float | None:
        """Its standard error, None where unknown."""
        half = self.half_width
        return None if half is None or self.df is None else half / t_quantile(self.df)

    @property
    def joint_half_width(self) -> float | None:
        """Half-width of the simultaneous interval."""
        return None if self.joint_low is None or self.joint_high is None else (self.joint_high - self.joint_low) / 2

    @property
    def identical(self) -> bool:
        """True if every run computed exactly what the baseline's run of the same seed did."""
        return self.method == "identical"


def t_interval(differences: Values) -> Effect | None:
    """Return the mean of paired differences with Student's t interval, n - 1 degrees of freedom; None without a pair.

    One pair gives a mean but no claim. Differences without any spread give an interval of width zero.
    """
    seeds = tuple(sorted(differences))
    values = tuple(float(differences[s]) for s in seeds)
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Effect(mean, 1, "descriptive", seeds=seeds, values=values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    low, high, p = student(mean, math.sqrt(variance / len(values)), len(values) - 1)
    return Effect(mean, len(values), "paired t", low, high, p, seeds, values)


def t_quantile(df: float) -> float:
    """Return the half-width of a two-sided 95% interval, in standard errors."""
    return float(stdtrit(df, 0.5 + LEVEL / 2))


def student(mean: float, error: float, df: float) -> tuple[float, float, float]:
    """Return (low, high, p) of a mean: its pointwise 95% interval, and the two-sided p value of 0."""
    half = t_quantile(df) * error
    p = 2 * float(stdtr(df, -abs(mean) / error)) if error > 0 else float(mean == 0)
    return mean - half, mean + half, p


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down corrected p values (Holm 1979), in order; None stays None and is not in the family."""
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[index] = largest
    return corrected


def spread(values: Values) -> float | None:
    """Return the standard deviation over seeds (n - 1); None for fewer than two."""
    return stdev(values.values()) if len(values) > 1 else None


@dataclass(frozen=True)
class Reach:
    """Cost of reaching a target, by seed. limits: full cost of the runs that never reached it (right-censored).

    at_most: True if a run had passed the target by its first evaluation, which makes the cost an upper bound.
    """

    reached: tuple[float, ...] = ()
    limits: tuple[float, ...] = ()
    factor: float | None = None  # baseline's need / this cell's, geometric mean over seeds; above 1: faster
    at_most: bool = False

    @property
    def censored(self) -> bool:
        return bool(self.limits)

    @property
    def mean(self) -> float | None:
        """Mean over seeds; a lower bound if any seed is censored."""
        every = self.reached + self.limits
        return math.fsum(every) / len(every) if every else None
