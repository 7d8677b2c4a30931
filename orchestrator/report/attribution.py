"""Divide the joint effect of all features among them: Shapley values, as far as the design identifies them.

The Shapley value of a feature is the mean, over all orders in which the features could be switched on, of what it adds
to those before it (Shapley 1953, Contributions to the Theory of Games II, 307). All values are contrasts of the cell
means of one least-squares fit, using the noise of all runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report.contrasts import estimate, screened_effects

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.contrasts import Contrast, Design, Weights

WHOLE, REST = "all on", "three or more"
MOST_FEATURES = 10  # of a full factorial: 1,024 cells


class Method(StrEnum):
    """How the shares are computed."""

    EXACT = "exact"  # every combination of the features is a cell
    PAIRS = "pairs"  # a fraction of resolution V: exact if no three features interact
    ENDS = "first and last"  # mean of first-in and last-in: exact if no three features interact


@dataclass(frozen=True)
class Attribution:
    """The effect of all features, `whole`, divided into `shares`, one per feature in the study's order.

    first_in: what each feature adds to the baseline; last_in: what it adds to all the others; rest: `whole` minus the
    shares. All three are for Method.ENDS only; with the other methods the shares sum to `whole`.
    """

    method: Method
    whole: Contrast
    shares: tuple[Contrast, ...]
    first_in: tuple[Contrast, ...] = ()
    last_in: tuple[Contrast, ...] = ()
    rest: Contrast | None = None


def attribute(design: Design) -> Attribution | None:
    """Return the attribution of all features, each at its first level; None if the design does not identify it."""
    features = [levels[0] for levels in design.factors.values()]
    if len(features) < 2:
        return None
    cells = {on for on, name in design.sets.items() if design.values.get(name)}
    every = frozenset(features)
    if _has_all_subsets(features, cells):
        table = [(f, _shapley(design, f, every)) for f in features]
        return _estimated(design, Method.EXACT, table)
    if design.screen and design.screen.pairs_free:
        table = screened_effects(design, design.screen)[0]
        return _estimated(design, Method.PAIRS, table) if all(weights for _, weights in table) else None
    ends = frozenset[str]() in cells and every in cells
    known = ends and all(frozenset([f]) in cells and every - {f} in cells for f in features)
    return _from_ends(design, features) if known else None


def _has_all_subsets(features: Sequence[str], cells: set[frozenset[str]]) -> bool:
    if len(features) > MOST_FEATURES:
        return False
    sizes = range(len(features) + 1)
    return all(frozenset(chosen) in cells for size in sizes for chosen in combinations(features, size))


def _shapley(design: Design, feature: str, every: frozenset[str]) -> Weights:
    """Return phi = sum over S without the feature of |S|! (f - |S| - 1)! / f! (v(S + feature) - v(S)), as weights."""
    others, count = sorted(every - {feature}), len(every)
    weights: dict[str, float] = {}
    for size in range(count):
        share = 1 / (count * math.comb(count - 1, size))
        for chosen in combinations(others, size):
            weights[design.sets[frozenset((*chosen, feature))]] = share
            weights[design.sets[frozenset(chosen)]] = -share
    return weights


def _estimated(design: Design, method: Method, table: Sequence[tuple[str, Weights]]) -> Attribution:
    """Return the attribution whose shares have these weights; the whole is their sum.

    With main effects m_i and pairs b_ij only, phi_i = b_i + 1/2 sum_j b_ij in on/off coding, which is m_i.
    """
    return Attribution(method, estimate(design, [(WHOLE, _sum(table))])[0], estimate(design, table))


def _from_ends(design: Design, features: Sequence[str]) -> Attribution:
    base, every = design.sets[frozenset()], frozenset(features)
    top = design.sets[every]
    first = [(f, {design.sets[frozenset([f])]: 1.0, base: -1.0}) for f in features]
    last = [(f, {top: 1.0, design.sets[every - {f}]: -1.0}) for f in features]
    shares = [(f, _sum([(f, a), (f, b)], 0.5)) for (f, a), (_, b) in zip(first, last, strict=True)]
    whole: Weights = {top: 1.0, base: -1.0}
    rest = _sum([(WHOLE, whole), ("", _sum(shares, -1.0))])
    return Attribution(
        Method.ENDS,
        estimate(design, [(WHOLE, whole)])[0],
        estimate(design, shares),
        estimate(design, first),
        estimate(design, last),
        estimate(design, [(REST, rest)])[0],
    )


def _sum(table: Sequence[tuple[str, Weights]], factor: float = 1.0) -> Weights:
    """Return the sum of contrasts, times a factor."""
    cells = dict.fromkeys(cell for _, weights in table for cell in weights)
    total = {cell: factor * math.fsum(weights.get(cell, 0.0) for _, weights in table) for cell in cells}
    return {cell: weight for cell, weight in total.items() if abs(weight) > 1e-12}
