"""Differences between two studies, in the effects of the same cell and in the baselines. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.special import stdtrit

from ablatrix.orchestrator.report.statistics import ALPHA, Effect, Values, spread, student, t_quantile


@dataclass(frozen=True)
class Estimate:
    """A mean of n runs and its standard error with `df` degrees of freedom."""

    mean: float
    error: float
    df: float
    n: int


def estimate_of_effect(effect: Effect | None) -> Estimate | None:
    """Return an effect as an estimate; None if its uncertainty is unknown."""
    if effect is None or effect.error is None or effect.df is None:
        return None
    return Estimate(effect.mean, effect.error, effect.df, effect.n)


def estimate_of_mean(values: Values) -> Estimate | None:
    """Return the mean of a cell's values as an estimate; None with fewer than two."""
    sd, n = spread(values), len(values)
    return None if sd is None else Estimate(math.fsum(values.values()) / n, sd / math.sqrt(n), n - 1, n)


def difference(first: Estimate, second: Estimate) -> Effect:
    """Return second minus first for independent samples, with a pointwise 95% interval and p value (Welch 1947).

    Degrees of freedom by Satterthwaite's formula: (a + b)^2 / (a^2 / df_a + b^2 / df_b) of the squared errors a and b.
    """
    mean, a, b = second.mean - first.mean, first.error**2, second.error**2
    n, error = min(first.n, second.n), math.sqrt(a + b)
    if error == 0:
        return Effect(mean, n, "descriptive")
    df = (a + b) ** 2 / (a**2 / first.df + b**2 / second.df)
    return Effect(mean, n, "unpaired", *student(mean, error, df), df=df)


def corrected(effects: Sequence[Effect | None]) -> list[Effect | None]:
    """Return the differences of one table with Bonferroni-corrected simultaneous intervals and p values."""
    m = sum(effect is not None and effect.p is not None for effect in effects)
    return [effect and _widened(effect, m) for effect in effects]


def _widened(effect: Effect, m: int) -> Effect:
    if effect.p is None or effect.half_width is None or effect.df is None:
        return effect
    half = effect.half_width * (float(stdtrit(effect.df, 1 - ALPHA / (2 * m))) / t_quantile(effect.df))
    return replace(effect, joint_low=effect.mean - half, joint_high=effect.mean + half, p_joint=min(1.0, m * effect.p))
