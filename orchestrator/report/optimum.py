"""The best value of a tuned setting: a parabola in its logarithm, fitted to the results at each value of a grid.

The loss is about quadratic in the logarithm of the learning rate (arXiv 2601.05049). Sensitivity is defined as in
Wortsman et al. 2023 (arXiv 2309.14322): the mean excess over the best loss across the grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

POINTS = 3  # values that the parabola goes through: farther from the best value, the loss is not quadratic


@dataclass(frozen=True)
class Optimum:
    """The result of a cell's grid.

    means: value -> mean result, for values with a usable run. fitted: minimum of the parabola through the best value
    and its neighbors; value: the candidate nearest to it. at_edge: True if the first or last value is the best.
    sensitivity: mean excess over the best mean; a diverged run counts with its loss at initialization. near: values
    that the parabola goes through; parabola: its coefficients in the logarithm of the value, highest power first; ()
    with fewer than three values.
    """

    means: Mapping[float, float]
    fitted: float
    value: float
    at_edge: bool
    sensitivity: float
    near: tuple[float, ...] = ()
    parabola: tuple[float, ...] = ()


def find_optimum(
    results: Mapping[float, Sequence[float]],
    candidates: Sequence[float],
    diverged: Mapping[float, Sequence[float]] | None = None,
    higher_is_better: bool = False,
) -> Optimum | None:
    """Return the optimum of a cell, None if there is no result.

    results: value -> final values of its usable runs; diverged: value -> losses at initialization of its diverged runs.
    """
    sign = -1.0 if higher_is_better else 1.0
    usable = {value: [sign * y for y in results[value]] for value in sorted(results) if results[value]}
    if not usable:
        return None
    values = list(usable)
    x, y = np.log(values), np.array([fmean(found) for found in usable.values()])
    best = int(np.argmin(y))
    first = max(0, min(best - 1, len(x) - POINTS))
    near = slice(first, first + POINTS)
    parabola = np.polyfit(x[near], y[near], 2) if len(x) >= POINTS else np.array([])
    fitted = float(np.exp(np.clip(_lowest(parabola, float(x[best])), x[near][0], x[near][-1])))
    return Optimum(
        means={value: sign * float(mean) for value, mean in zip(values, y, strict=True)},
        fitted=fitted,
        value=min(candidates, key=lambda value: abs(float(np.log(value / fitted)))),
        at_edge=best in (0, len(x) - 1),
        sensitivity=_sensitivity(usable, diverged or {}, float(y[best])),
        near=tuple(values[near]),
        parabola=tuple(sign * float(c) for c in parabola),
    )


def _lowest(parabola: np.ndarray, best: float) -> float:
    """Return where the parabola is lowest, or the best value if it has no minimum."""
    if not len(parabola) or parabola[0] <= 0:
        return best
    return float(-parabola[1] / (2 * parabola[0]))


def _sensitivity(
    usable: Mapping[float, Sequence[float]], diverged: Mapping[float, Sequence[float]], best: float
) -> float:
    tried = {value: [*usable.get(value, ()), *diverged.get(value, ())] for value in {*usable, *diverged}}
    return fmean(fmean(found) - best for found in tried.values() if found)
