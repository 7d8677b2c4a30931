"""Effects against training compute C: a line in ln C, predictions at larger sizes, compute-equivalent gains.

Pure functions of numbers; across_sizes.py applies them to a study.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import chdtrc

from ablatrix.orchestrator.report.statistics import student, t_quantile
from ablatrix.orchestrator.study.scale import FARTHEST
from ablatrix.trainer.rundir.errors import UserError

FEWEST_SIZES = 3  # for a line with a test of fit
FEWEST_FOR_CURVE = 4  # for L = E + A C^-alpha, which has three parameters


@dataclass(frozen=True)
class Point:
    """An effect at one size, with its standard error and degrees of freedom. compute: baseline's training FLOPs."""

    size: str
    compute: float
    effect: float
    error: float
    df: float


@dataclass(frozen=True)
class Prediction:
    """The line at one compute value. low, high: 95% interval of the effect there.

    seen_low, seen_high: 95% prediction interval for the effect that a study with as many seeds would measure there.
    """

    compute: float
    effect: float
    low: float
    high: float
    seen_low: float
    seen_high: float
    extrapolated: bool


@dataclass(frozen=True)
class Line:
    """effect(C) = intercept + slope ln C, fitted by weighted least squares. covariance: (2, 2).

    lack_of_fit: p value of the chi-squared test that the effects lie on a line, None for two sizes; df: of the noise.
    """

    points: tuple[Point, ...]
    intercept: float
    slope: float
    covariance: np.ndarray
    df: float
    lack_of_fit: float | None

    @property
    def slope_error(self) -> float:
        return math.sqrt(self.covariance[1, 1])

    @property
    def slope_interval(self) -> tuple[float, float, float]:
        """95% interval of the slope per e-fold of compute, and the p value of a slope of 0."""
        return student(self.slope, self.slope_error, self.df)

    @property
    def largest(self) -> float:
        """The largest measured compute."""
        return max(point.compute for point in self.points)

    def at(self, compute: float) -> Prediction:
        """Return the line at a compute in FLOPs. Raises UserError beyond 10 times the largest measured one."""
        if compute > self.largest * FARTHEST * (1 + 1e-9):
            raise UserError(
                f"{compute:.3g} FLOPs are {compute / self.largest:.3g} times the largest compute of the study; effects "
                f"are predicted up to {FARTHEST:g} times"
            )
        x = np.array([1.0, math.log(compute)])
        effect, variance = self.intercept + self.slope * x[1], float(x @ self.covariance @ x)
        half, seen = (t_quantile(self.df) * math.sqrt(v) for v in (variance, variance + self._noise(compute) ** 2))
        outside = not min(p.compute for p in self.points) <= compute <= self.largest * (1 + 1e-9)
        return Prediction(compute, effect, effect - half, effect + half, effect - seen, effect + seen, outside)

    def _noise(self, compute: float) -> float:
        """Return the standard error of an effect measured at a compute, interpolated between sizes."""
        known = np.log(sorted((point.compute, point.error) for point in self.points))
        return math.exp(float(np.interp(math.log(compute), known[:, 0], known[:, 1])))


def fit_line(points: Sequence[Point]) -> Line | None:
    """Fit the line, with weights 1 / error^2; None without two sizes that differ in compute.

    If the effects scatter around the line more than their errors explain, the covariance is multiplied by
    chi^2 / (sizes - 2), which gives the bands of ordinary weighted least squares (Birge 1932).
    """
    if len({point.compute for point in points}) < 2 or any(point.error <= 0 for point in points):
        return None
    design = np.array([[1.0, math.log(point.compute)] for point in points])
    y, weights = np.array([p.effect for p in points]), np.array([p.error for p in points]) ** -2.0
    covariance = np.linalg.inv(design.T @ (weights[:, None] * design))
    intercept, slope = covariance @ design.T @ (weights * y)
    free = len(points) - 2
    chi2 = float(np.sum(weights * (y - intercept - slope * design[:, 1]) ** 2))
    inflation = max(1.0, chi2 / free) if free else 1.0
    fits = float(chdtrc(free, chi2)) if free else None
    df = math.fsum(point.df for point in points)
    return Line(tuple(points), float(intercept), float(slope), covariance * inflation, df, fits)


# ---- the baseline's loss against compute -----------------------------------------------------------------------------


@dataclass(frozen=True)
class LossCurve:
    """The baseline's loss L(C) over its sizes. law: (E, A, alpha) of L = E + A C^-alpha.

    Without a law, ln L is interpolated over ln C between sizes, and extrapolated from the nearest two outside.
    """

    compute: tuple[float, ...]
    loss: tuple[float, ...]
    law: tuple[float, float, float] | None = None

    def at(self, compute: float) -> float:
        """Return the loss at an amount of compute."""
        if self.law:
            limit, factor, exponent = self.law
            return limit + factor * math.pow(compute, -exponent)
        return math.exp(_interpolate(math.log(compute), np.log(self.compute), np.log(self.loss)))

    def compute_for(self, loss: float) -> float:
        """Return the compute at which the baseline reaches a loss, inf if it never does."""
        if self.law:
            limit, factor, exponent = self.law
            return ((loss - limit) / factor) ** (-1 / exponent) if loss > limit else math.inf
        if loss <= 0:
            return math.inf
        exponent = _interpolate(-math.log(loss), -np.log(self.loss), np.log(self.compute))
        return math.exp(exponent) if exponent < 700 else math.inf


def _interpolate(x: float, known: np.ndarray, values: np.ndarray) -> float:
    """Interpolate between known points in ascending order; extrapolate from the first or last two outside."""
    i = min(max(int(np.searchsorted(known, x)), 1), len(known) - 1)
    share = (x - known[i - 1]) / (known[i] - known[i - 1])
    return float(values[i - 1] + share * (values[i] - values[i - 1]))


def fit_loss(compute: Sequence[float], loss: Sequence[float], errors: Sequence[float]) -> LossCurve | None:
    """Fit L = E + A C^-alpha (Hoffmann et al. 2022) with E, A >= 0 by least squares; with 2 or 3 sizes, interpolate.

    compute, loss, errors (standard errors): of the baseline at each size, from small to large. None if the loss does
    not fall from each size to the next, because a loss then has no unique compute.
    """
    pairs = list(zip(compute, loss, strict=True))
    rises = any(b[0] <= a[0] or b[1] >= a[1] for a, b in pairwise(pairs))
    if len(pairs) < 2 or rises or min(loss) <= 0:
        return None
    from scipy.optimize import minimize_scalar, nnls  # slow to import

    curve = LossCurve(tuple(compute), tuple(loss))
    if len(pairs) < FEWEST_FOR_CURVE or min(errors) <= 0:
        return curve
    scale, weights, y = compute[0], 1 / np.array(errors), np.array(loss)

    def solve(exponent: float) -> tuple[np.ndarray, float]:
        columns = np.column_stack([np.ones(len(y)), (np.array(compute) / scale) ** -exponent])
        found, rest = nnls(columns * weights[:, None], y * weights)
        return found, float(rest)

    best = minimize_scalar(lambda exponent: solve(exponent)[1], bounds=(0.01, 2.0), method="bounded")
    (limit, factor), _ = solve(float(best.x))
    if factor <= 0:
        return curve
    return LossCurve(curve.compute, curve.loss, (float(limit), float(factor * scale**best.x), float(best.x)))


@dataclass(frozen=True)
class Gain:
    """Compute that the baseline needs for a cell's loss, divided by the cell's own; above 1, the cell saves compute.

    low, high: from the 95% interval of the effect. Values are inf where the baseline would need more than 10 times the
    largest compute, which is not predicted. extrapolated: that compute is outside the baseline's measured sizes.
    """

    value: float
    low: float
    high: float
    extrapolated: bool


def find_gain(curve: LossCurve, base_compute: float, compute: float, effect: tuple[float, float, float]) -> Gain:
    """Return the compute-equivalent gain of a cell. effect: its mean, low and high at this size, in units of the loss.

    The cell's loss is the curve at the baseline's compute plus the effect, so an effect of 0 gives a gain of 1.
    """
    found = []
    for difference in effect:
        needed = curve.compute_for(curve.at(base_compute) + difference)
        found.append(needed if needed <= FARTHEST * curve.compute[-1] * (1 + 1e-9) else math.inf)
    outside = not curve.compute[0] * (1 - 1e-9) <= found[0] <= curve.compute[-1] * (1 + 1e-9)
    value, high, low = (needed / compute for needed in found)  # a lower loss means a higher gain
    return Gain(value, low, high, outside)
