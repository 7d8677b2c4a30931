"""Combinations of cells: main effects and interactions of a factorial, leave-one-out effects, sums of parts.

All of them are contrasts of the cell means of one least-squares fit over all runs (cell + seed), so a missing run costs
precision but causes no bias. Each table is corrected on its own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from typing import TYPE_CHECKING

import numpy as np

from ablatrix.orchestrator.report.comparison import find_resolution
from ablatrix.orchestrator.report.decisions import is_decided
from ablatrix.orchestrator.report.pooled import Fit, fit
from ablatrix.orchestrator.report.statistics import ALPHA, Effect, Values, t_quantile

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.screening import Screen

OFF = ""  # the level of a factor that is off
Weights = Mapping[str, float]  # cell -> weight, summing to 0


@dataclass(frozen=True)
class Contrast:
    """A named combination of cells with its effect, corrected within its own table.

    missing: number of planned runs of its cells that have no usable value; resolution: unit to which the values are
    rounded, smaller effects are never decided.
    """

    name: str
    effect: Effect | None
    missing: int = 0
    resolution: float = 0.0

    @property
    def decided(self) -> bool:
        """True if the effect is shown not to be 0."""
        return is_decided(self.effect, self.resolution)


@dataclass(frozen=True)
class MarginalMean:
    """The mean of all cells in which a factor has this level, adjusted for missing runs, with its 95% half-width."""

    factor: str
    level: str
    mean: float
    half_width: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)


@dataclass(frozen=True)
class Combinations:
    """The tables of a design. main_effects, pairs: of a factorial or screening design, `screen`; together: all
    factors of a full factorial at once.
    """

    main_effects: tuple[Contrast, ...] = ()
    pairs: tuple[Contrast, ...] = ()
    together: tuple[Contrast, ...] = ()
    left_out: tuple[Contrast, ...] = ()
    marginal_means: tuple[MarginalMean, ...] = ()
    screen: Screen | None = None

    @property
    def interactions(self) -> tuple[Contrast, ...]:
        """Every contrast that is 0 if effects add up."""
        return self.pairs + self.together


@dataclass(frozen=True)
class Design:
    """The cells of a study by their features. factors: name -> its levels, as feature names.

    screen: the screening design that is part of the study; its features are the factors, in order.
    """

    sets: Mapping[frozenset[str], str]
    factors: Mapping[str, tuple[str, ...]]
    values: Mapping[str, Values]
    expected: Mapping[str, int] = field(default_factory=dict)  # planned runs of each cell
    screen: Screen | None = None
    alpha: float = ALPHA  # error rate of each table

    @property
    def is_factorial(self) -> bool:
        """True if there are two or more factors and a cell for every combination of their levels, including off."""
        size = math.prod(len(levels) + 1 for levels in self.factors.values())
        return len(self.factors) >= 2 and len(self.sets) == size

    def cell(self, levels: Sequence[str]) -> str:
        """Return the cell with these levels on. Raises KeyError if there is none."""
        return self.sets[frozenset(level for level in levels if level != OFF)]


def combine(design: Design) -> Combinations:
    """Return every table that the design allows."""
    if design.is_factorial:
        every = [levels[0] for levels in design.factors.values()]
        together = [_sum_of_parts(design, frozenset(every))] if len(every) > 2 else []
        main, pairs = _second_order(design)
        return Combinations(
            main_effects=estimate(design, main, design.sets.values()),
            pairs=estimate(design, pairs, design.sets.values()),
            together=estimate(design, together),
            left_out=estimate(design, _left_out(design)),
            marginal_means=_marginal_means(design),
        )
    if design.screen:
        cells = _screened_cells(design, design.screen)
        main, pairs = screened_effects(design, design.screen)
        return Combinations(
            main_effects=estimate(design, main, cells.values()),
            pairs=estimate(design, pairs, cells.values()),
            left_out=estimate(design, _left_out(design)),
            screen=design.screen,
        )
    combined = [s for s in design.sets if len(s) >= 2 and all(frozenset([f]) in design.sets for f in s)]
    parts = [_sum_of_parts(design, s) for s in combined] if frozenset() in design.sets else []
    return Combinations(together=estimate(design, parts), left_out=estimate(design, _left_out(design)))


# ---- weights ---------------------------------------------------------------------------------------------------------


def _second_order(design: Design) -> tuple[list[tuple[str, Weights]], list[tuple[str, Weights]]]:
    """Return main effects and pairs, as weights of the cells that have runs.

    A main effect is the mean of y(level) - y(off) over all combinations of the other factors; a pair is the mean of
    y(both) - y(one) - y(other) + y(neither) over the others, 0 if effects add up (Box, Hunter & Hunter 2005, chapter 5,
    where it is halved). Both are least-squares coefficients of centered columns, which needs no assumption if every
    cell has runs; if a cell has none, three-way interactions are assumed to be 0.
    """
    cells = [name for name in design.sets.values() if design.values.get(name)]
    features = {name: on for on, name in design.sets.items()}
    columns: dict[str, dict[str, np.ndarray]] = {}
    for factor, levels in design.factors.items():
        columns[factor] = {
            level: np.array([level in features[cell] for cell in cells]) - 1 / (len(levels) + 1) for level in levels
        }
    main = {level: column for group in columns.values() for level, column in group.items()}
    pairs = {
        f"{a} × {b}": columns[first][a] * columns[second][b]
        for first, second in combinations(design.factors, 2)
        for a, b in product(design.factors[first], design.factors[second])
    }
    return _least_squares(cells, main, pairs)


def _screened_cells(design: Design, screen: Screen) -> dict[int, str]:
    """Return the cells of a screening design that the study has: mask of the features that are on -> name."""
    labels = [levels[0] for levels in design.factors.values()]
    sets = {mask: frozenset(f for i, f in enumerate(labels) if mask >> i & 1) for mask in screen.cells}
    return {mask: design.sets[on] for mask, on in sets.items() if on in design.sets}


def screened_effects(design: Design, screen: Screen) -> tuple[list[tuple[str, Weights]], list[tuple[str, Weights]]]:
    """Return main effects, and the pairs that are not aliased with them; pairs aliased with each other as their sum.

    Least squares on centered columns, as in a full factorial, using only the cells of the design (Box, Hunter & Hunter
    2005, chapter 6). Any other effects aliased with the columns are assumed to be 0.
    """
    masks = {mask: name for mask, name in _screened_cells(design, screen).items() if design.values.get(name)}
    centred = [np.array([mask >> i & 1 for mask in masks]) - 0.5 for i in range(screen.count)]
    labels = [levels[0] for levels in design.factors.values()]
    pairs = {
        " + ".join(f"{labels[a]} × {labels[b]}" for a, b in chain): centred[chain[0][0]] * centred[chain[0][1]]
        for chain in screen.chains
    }
    return _least_squares(list(masks.values()), dict(zip(labels, centred, strict=True)), pairs)


def _least_squares(
    cells: Sequence[str], main: Mapping[str, np.ndarray], pairs: Mapping[str, np.ndarray]
) -> tuple[list[tuple[str, Weights]], list[tuple[str, Weights]]]:
    """Return the coefficients of columns as weights of the cells; the weights are empty if they are not identified."""
    matrix = np.column_stack([np.ones(len(cells)), *main.values(), *pairs.values()]) if cells else np.empty((0, 1))
    if np.linalg.matrix_rank(matrix) < 1 + len(main) + len(pairs):
        return [(name, {}) for name in main], [(name, {}) for name in pairs]
    solved = np.linalg.pinv(matrix)[1:]
    table: list[tuple[str, Weights]] = [
        (name, dict(zip(cells, row.tolist(), strict=True))) for name, row in zip([*main, *pairs], solved, strict=True)
    ]
    return table[: len(main)], table[len(main) :]


def _sum_of_parts(design: Design, features: frozenset[str]) -> tuple[str, Weights]:
    """Return (cell - baseline) minus the sum of (single feature - baseline): 0 if effects add up."""
    weights = {design.sets[features]: 1.0, design.sets[frozenset()]: len(features) - 1.0}
    return design.sets[features], weights | {design.sets[frozenset([f])]: -1.0 for f in sorted(features)}


def _left_out(design: Design) -> list[tuple[str, Weights]]:
    """Return the effect of each feature when all others are on (leave-one-out designs)."""
    features = [levels[0] for levels in design.factors.values()]
    every = frozenset(features)
    if len(every) < 3 or every not in design.sets:
        return []
    without = [(f, design.sets[every - {f}]) for f in features if every - {f} in design.sets]
    return [(f, {design.sets[every]: 1.0, name: -1.0}) for f, name in without]


# ---- estimates -------------------------------------------------------------------------------------------------------


def estimate(
    design: Design, table: Sequence[tuple[str, Weights]], concerned: Collection[str] = ()
) -> tuple[Contrast, ...]:
    """Return the contrasts of one table with simultaneous intervals; those with a cell without runs have no effect.

    concerned: cells whose missing runs are counted, by default the cells of each contrast.
    """
    usable = {name: row for name, row in design.values.items() if row}
    known = [(name, weights) for name, weights in table if weights and all(cell in usable for cell in weights)]
    model = fit(usable) if known else None
    resolution = find_resolution([value for row in usable.values() for value in row.values()])
    effects = iter(_effects(model, [weights for _, weights in known], design, resolution) if model else [])
    found = []
    for name, weights in table:
        effect = next(effects) if weights and all(cell in usable for cell in weights) else None
        cells = concerned or weights
        missing = sum(design.expected.get(cell, 0) - len(design.values.get(cell, {})) for cell in cells)
        found.append(Contrast(name, effect, missing, resolution))
    return tuple(found)


def _effects(model: Fit, table: Sequence[Weights], design: Design, resolution: float) -> list[Effect]:
    """Return the effects of one table; no standard error is below that of values rounded to `resolution`."""
    weights = np.array([[row.get(cell, 0.0) for cell in model.cells] for row in table])
    means, units, joint = model.joint(weights)
    found = [_described(float(mean), row, design.values) for mean, row in zip(means, table, strict=True)]
    if model.df < 1:
        return found
    floors = resolution**2 / 12 * np.sum(weights**2 / model.counts, axis=1)
    errors = np.sqrt(np.maximum(units * model.variance, np.maximum(floors, 1e-30)))
    critical = joint.critical(design.alpha)
    corrected = joint.p_values(means / errors)
    return [
        replace(effect, method="pooled").with_intervals(float(error), model.df, critical, float(p), design.alpha)
        for effect, error, p in zip(found, errors, corrected, strict=True)
    ]


def _described(mean: float, weights: Weights, values: Mapping[str, Values]) -> Effect:
    """Return a descriptive effect: its mean, and its value for each seed that has a run in all of its cells."""
    seeds = sorted(set.intersection(*(set(values[cell]) for cell in weights)))
    each = tuple(math.fsum(w * values[cell][s] for cell, w in weights.items()) for s in seeds)
    return Effect(mean, len(seeds), "descriptive", seeds=tuple(seeds), values=each)


def _marginal_means(design: Design) -> tuple[MarginalMean, ...]:
    """Return the mean at each level of each factor, over all combinations of the other factors."""
    usable = {name: row for name, row in design.values.items() if row}
    if len(usable) < len(design.sets):
        return ()
    model = fit(usable)
    at = {cell: i for i, cell in enumerate(model.cells)}
    found = []
    for name, levels in design.factors.items():
        others = [(OFF, *other) for factor, other in design.factors.items() if factor != name]
        for level in (OFF, *levels):
            cells = [at[design.cell((level, *rest))] for rest in product(*others)]
            weights = np.isin(np.arange(len(at)), cells)[None, :] / len(cells)
            half = None
            if model.df > 0:
                half = t_quantile(model.df) * math.sqrt(model.variance * float(model.covariance(weights)[0, 0]))
            found.append(MarginalMean(name, level or "off", float(np.mean(model.means[cells])), half))
    return tuple(found)
