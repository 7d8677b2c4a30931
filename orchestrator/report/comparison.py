"""Compare cells with a reference cell: pooled where the noise allows it, with simultaneous intervals and p values."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

import numpy as np

from ablatrix.orchestrator.report import homogeneity
from ablatrix.orchestrator.report.pooled import Fit, connected, fit
from ablatrix.orchestrator.report.simultaneous import Joint
from ablatrix.orchestrator.report.statistics import ALPHA, Effect, Method, Values, holm, t_interval

FINEST = 1e-10  # relative to the largest value: finer steps are floating-point noise


@dataclass(frozen=True)
class Comparison:
    """Effects of cells against a reference. noise, odd, outliers: of the pool, see homogeneity.

    resolution: unit to which the values are rounded; smaller effects are never decided.
    """

    effects: dict[str, Effect] = field(default_factory=dict)
    noise: homogeneity.Noise | None = None
    odd: tuple[str, ...] = ()
    outliers: tuple[tuple[str, int], ...] = ()
    resolution: float = 0.0


def compare(
    values: Mapping[str, Values],
    reference: str,
    identical: Collection[str] = (),
    tables: int = 1,
    alpha: float = ALPHA,
) -> Comparison:
    """Compare every cell that has runs with the reference.

    identical: cells that computed what the reference did; they are not tested and do not enter the noise. tables:
    number of tables that share the error rate (Bonferroni). A cell is judged, in this order:
    - by least squares over all runs of all cells ("pooled"), if common seeds connect it with the reference;
    - by its own paired t test, if its noise or the reference's is larger than the others' (Cochran's test);
    - without pairing ("unpaired"), if it shares no seed: by the spread within the cells that have several runs;
    - not at all ("descriptive"), if no cell has two runs.
    Each group gets a share of the error rate, so the probability of any false verdict over all cells is alpha.
    """
    base = values.get(reference, {})
    tested = {name: row for name, row in values.items() if row and name != reference and name not in identical}
    resolution = find_resolution([v for row in values.values() for v in row.values()])
    if not base:
        return Comparison(resolution=resolution)
    effects = {name: _identical(values[name], base) for name in identical if values.get(name)}
    whole = fit(connected({reference: base, **tested}, reference))
    pool, odd = homogeneity.find_odd_cells(whole) if whole.df > 0 else (None, ())
    outliers = homogeneity.find_outliers(whole) if whole.df > 1 else ()
    groups = _Groups(values, reference, resolution)
    if pool is not None and reference not in odd:
        groups.add_pool(pool, "pooled")
    groups.add_pairs([n for n in tested if n in whole.cells and (n in odd or reference in odd)])
    rest = [name for name in tested if name not in groups.effects]
    groups.add_unpaired(rest)
    effects |= groups.judged(tables, alpha)
    effects = _with_paired(effects, values, base)
    if outliers:
        effects = {n: replace(e, without_outliers=groups.mean_without(n, outliers, odd)) for n, e in effects.items()}
    noise = homogeneity.describe_noise(pool) if pool is not None and pool.df > 0 else None
    return Comparison({n: effects[n] for n in values if n in effects}, noise, odd, outliers, resolution)


def find_resolution(values: Sequence[float]) -> float:
    """Return the unit to which the values are rounded: the last decimal place of any of them, at least FINEST."""
    if not values:
        return 0.0
    least = FINEST * max(map(abs, values))
    last = math.inf
    for value in values:
        last = min(last, 10.0 ** int(Decimal(repr(float(value))).normalize().as_tuple().exponent))
        if last <= least:
            return least
    return last


def _identical(cell: Values, base: Values) -> Effect:
    common = sorted(set(cell) & set(base))
    return Effect(0.0, len(common), "identical", seeds=tuple(common), values=(0.0,) * len(common))


def _with_paired(effects: Mapping[str, Effect], values: Mapping[str, Values], base: Values) -> dict[str, Effect]:
    """Return the effects, each tested one with its own paired t test added, corrected by Holm's method."""
    tested = [n for n, effect in effects.items() if not effect.identical]
    pairs = {n: t_interval({s: values[n][s] - base[s] for s in values[n] if s in base}) for n in tested}
    corrected = holm([p.p if p else None for p in pairs.values()])
    paired = {
        n: replace(p, p_joint=c) for (n, p), c in zip(pairs.items(), corrected, strict=True) if p and c is not None
    }
    return {n: replace(e, paired=paired.get(n)) for n, e in effects.items()}


@dataclass
class _Group:
    """Contrasts that are judged together. errors: standard errors (m,)."""

    names: list[str]
    means: np.ndarray
    errors: np.ndarray
    joint: Joint
    method: Method


class _Groups:
    """Cells grouped by how they are judged."""

    def __init__(self, values: Mapping[str, Values], reference: str, resolution: float) -> None:
        self.values, self.reference, self.resolution = values, reference, resolution
        self.groups: list[_Group] = []
        self.effects: dict[str, Effect] = {}

    def add_pool(self, pool: Fit, method: Method) -> None:
        names = [name for name in pool.cells if name != self.reference]
        if not names or pool.df < 1:
            return
        means, units, joint = pool.against(self.reference)
        extra = (homogeneity.variances(pool, self.reference) - pool.variance) / pool.counts
        at = pool.cells.index(self.reference)
        squared = units * pool.variance + np.delete(extra, at) + extra[at]
        self._add(_Group(names, means, np.sqrt(squared), joint, method))

    def add_pairs(self, names: Sequence[str]) -> None:
        base = self.values[self.reference]
        for name in names:
            differences = np.array([v - base[s] for s, v in sorted(self.values[name].items()) if s in base])
            if len(differences) > 1:
                mean, error = np.array([differences.mean()]), np.array([differences.std(ddof=1)])
                joint = Joint(((0.0, 1),), len(differences) - 1)
                self._add(_Group([name], mean, error / math.sqrt(len(differences)), joint, "paired t"))

    def add_unpaired(self, names: Sequence[str]) -> None:
        if not names:
            return
        pool = fit({self.reference: self.values[self.reference], **{n: self.values[n] for n in names}}, blocks=False)
        self.add_pool(pool, "unpaired")
        means = pool.means - pool.means[0]
        for name, mean in zip(names, means[1:], strict=True):
            if name not in self.effects:
                self.effects[name] = self._effect(name, float(mean), "descriptive")

    def _add(self, group: _Group) -> None:
        self.groups.append(group)
        self.effects |= {
            n: self._effect(n, float(mean), group.method) for n, mean in zip(group.names, group.means, strict=True)
        }

    def _effect(self, name: str, mean: float, method: Method) -> Effect:
        row, base = self.values[name], self.values[self.reference]
        center = math.fsum(base.values()) / len(base)
        differences = tuple(float(row[s] - base.get(s, center)) for s in sorted(row))
        return Effect(mean, len(row), method, seeds=tuple(sorted(row)), values=differences)

    def judged(self, tables: int, alpha: float) -> dict[str, Effect]:
        """Return the effects with their intervals and p values."""
        total = sum(len(group.names) for group in self.groups)
        for group in self.groups:
            share = len(group.names) / total / tables
            df = group.joint.df
            joint = group.joint.critical(alpha * share)
            wide = group.joint.critical(2 * alpha * share)
            floors = [self.resolution / math.sqrt(6 * len(self.values[name])) for name in group.names]
            errors = np.maximum(group.errors, floors)
            corrected = np.minimum(group.joint.p_values(group.means / errors) / share, 1.0)
            for name, mean, error, p in zip(group.names, group.means, errors, corrected, strict=True):
                effect = self.effects[name].with_intervals(float(error), df, joint, float(p), alpha)
                self.effects[name] = replace(effect, within=float(abs(mean) + wide * error))
        return self.effects

    def mean_without(self, name: str, runs: Sequence[tuple[str, int]], odd: Sequence[str]) -> float | None:
        """Return the effect of a cell without some runs, None if that changes nothing or leaves no runs."""
        if not {n for n, _ in runs} & {name, self.reference}:
            return None
        kept = {n: {s: v for s, v in row.items() if (n, s) not in runs} for n, row in self.values.items()}
        row, base = kept[name], kept[self.reference]
        if not row or not base:
            return None
        own = {self.reference: base, name: row}
        if self.effects[name].method == "pooled":
            own = {n: r for n, r in kept.items() if r and n not in odd}
        connected_cells = connected(own, self.reference)
        found = fit(connected_cells if name in connected_cells else own, blocks=name in connected_cells)
        return float(found.means[found.cells.index(name)] - found.means[found.cells.index(self.reference)])
