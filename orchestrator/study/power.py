"""What a design can show: the power of a comparison with the baseline, the smallest effect shown, the seeds needed.

With k cells of n seeds each and residual standard deviation sigma, there are (k - 1)(n - 1) degrees of freedom, and
Dunnett's critical value is for k - 1 comparisons at alpha = .05. A design analyzed by main effects tests each of them
on all runs: standard error 2 sigma / sqrt(k n), with the studentized maximum modulus as critical value. The integrals
are sums over a grid, because importing scipy for them would take longer than all of `plan`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

ALPHA = 0.05
MOST_SEEDS = 200
PRECISION = 1e-9
# The trapezoidal rule converges exponentially on densities like these
_NORMAL_STEP, _NORMAL_POINTS = 0.4, 16  # over half the normal distribution
_SCALE_STEP = 0.35  # over log s, times the square root of its degrees of freedom


def power(effect: float, sigma: float, cells: int, seeds: int, main_effects: int = 0) -> float:
    """Return the probability that an effect is shown: P(|T| > c), T noncentral t.

    effect, sigma: in the unit of the measure; sigma is the residual standard deviation of cell + seed. main_effects:
    how many are tested, 0 if cells are compared with the baseline. Returns 0 if the design has no degrees of freedom.
    """
    if cells < 2 or seeds < 2:
        return 0.0
    limit, error = _rule(cells, seeds, main_effects)
    return _tail(limit, effect / (sigma * error), cells, seeds)


def smallest_effect(
    sigma: float, cells: int, seeds: int, wanted: float = 0.8, main_effects: int = 0, *, alpha: float = ALPHA
) -> float | None:
    """Return the smallest effect shown with this power, None if the design has no degrees of freedom.

    alpha: error rate of the comparisons with the baseline.
    """
    if cells < 2 or seeds < 2:
        return None
    limit, error = _rule(cells, seeds, main_effects, alpha)
    shift = _solve(lambda shift: _tail(limit, shift, cells, seeds) - wanted, 0.0, limit + 20.0)
    return shift * sigma * error


def seeds_needed(effect: float, sigma: float, cells: int, wanted: float = 0.8, main_effects: int = 0) -> int | None:
    """Return the fewest seeds that show an effect with this power; None if MOST_SEEDS are not enough."""
    low, high = 1, 2
    while power(effect, sigma, cells, high, main_effects) < wanted:
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, sigma, cells, middle, main_effects) >= wanted else (middle, high)
    return high


@lru_cache(maxsize=256)
def critical(comparisons: int, freedom: int, alpha: float = ALPHA) -> float:
    """Return Dunnett's two-sided critical value at alpha for comparisons with one baseline (correlation 1/2).

    Dunnett 1955, J. Am. Stat. Assoc. 50, 1096.
    """
    points = [i * _NORMAL_STEP for i in range(_NORMAL_POINTS)]
    density = [math.exp(-z * z / 2) * _NORMAL_STEP * (2 if z else 1) / math.sqrt(2 * math.pi) for z in points]
    normal = list(zip(points, density, strict=True))  # the integrand is even

    def outside(limit: float) -> float:
        inside = 0.0
        for s, weight in _scales(freedom):
            width = limit * s * math.sqrt(2)
            inside += weight * sum(w * (_phi(z + width) - _phi(z - width)) ** comparisons for z, w in normal)
        return inside - (1 - alpha)

    return _solve(outside, 0.0, 2.5)


@lru_cache(maxsize=64)
def critical_of_main_effects(effects: int, freedom: int) -> float:
    """Return the two-sided critical value at ALPHA for uncorrelated effects: the studentized maximum modulus.

    Stoline & Ury 1979, Technometrics 21, 87.
    """

    def outside(limit: float) -> float:
        return sum(w * (2 * _phi(limit * s) - 1) ** effects for s, w in _scales(freedom)) - (1 - ALPHA)

    return _solve(outside, 0.0, 2.5)


def _rule(cells: int, seeds: int, main_effects: int, alpha: float = ALPHA) -> tuple[float, float]:
    """Return the critical value of a test and the standard error of what is tested, in units of sigma."""
    freedom = _freedom(cells, seeds)
    if main_effects:
        return critical_of_main_effects(main_effects, freedom), 2 / math.sqrt(cells * seeds)
    return critical(cells - 1, freedom, alpha), math.sqrt(2 / seeds)


def _freedom(cells: int, seeds: int) -> int:
    return (cells - 1) * (seeds - 1)


def _tail(limit: float, shift: float, cells: int, seeds: int) -> float:
    """Return P(|Z + shift| / s > limit) for standard normal Z; the integrand falls within 1 / shift of log s."""
    freedom = _freedom(cells, seeds)
    halvings = max(0, math.ceil(math.log2(1e-9 + shift * _SCALE_STEP / math.sqrt(freedom))))
    points = _scales(freedom, halvings)
    return sum(w * (_phi(shift - limit * s) + _phi(-shift - limit * s)) for s, w in points)


@lru_cache(maxsize=64)
def _scales(freedom: int, halvings: int = 0) -> tuple[tuple[float, float], ...]:
    """Return points and weights of s = sqrt(chi-squared / freedom), by the trapezoidal rule over log s.

    halvings: how often its step is halved.
    """
    return tuple(_points(freedom, halvings))


def _points(freedom: int, halvings: int) -> Iterator[tuple[float, float]]:
    step = _SCALE_STEP / math.sqrt(freedom) / 2**halvings
    low = -max(16 / freedom, 5 / math.sqrt(freedom))  # in log s; negligible density below, and above 4 / sqrt(freedom)
    logs = [low + i * step for i in range(round((4 / math.sqrt(freedom) - low) / step))]
    density = [math.exp(freedom * (x - math.expm1(2 * x) / 2)) for x in logs]
    total = sum(density)
    yield from ((math.exp(x), weight / total) for x, weight in zip(logs, density, strict=True))


def _phi(x: float) -> float:
    """Return the standard normal distribution function."""
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _solve(rise: Callable[[float], float], low: float, high: float) -> float:
    """Return the root of an increasing function above `low` by the Illinois variant of regula falsi. high: a guess."""
    below = rise(low)
    while (above := rise(high)) < 0:
        low, below, high = high, above, 1.5 * high
    for _ in range(100):
        x = (low * above - high * below) / (above - below)
        value = rise(x)
        if abs(value) < PRECISION or high - low < PRECISION:
            break
        if value < 0:
            low, below, above = x, value, above / 2
        else:
            high, above, below = x, value, below / 2
    return x
