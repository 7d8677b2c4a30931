"""Test whether all cells have the same noise; find cells that do not belong in the pool, and outlying runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import chdtrc, fdtrc

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.pooled import Fit

ODD = 0.01  # level of Cochran's test
NOISY_REFERENCE = 0.05  # level of the test of the reference's noise
FEWEST_CELLS = 3  # whose residuals can differ in variance
LEAST_FREEDOM = 6  # fewest degrees of freedom at which a median of residuals is meaningful
FAR = 5 * 1.4826  # median absolute deviations: 5 standard deviations of a normal distribution


@dataclass(frozen=True)
class Noise:
    """The noise of the pool. sd: of a run; bartlett, levene: p values of equal variances, None with too few runs.

    paired_away: share of the variance within cells that pairing by seed removed; intraclass: intraclass correlation.
    """

    sd: float
    df: int
    bartlett: float | None
    levene: float | None
    paired_away: float
    intraclass: float


def describe_noise(pool: Fit) -> Noise:
    """Return the noise of a pool that has degrees of freedom."""
    plain = pool.without_blocks()
    removed = max(0.0, 1 - pool.variance / plain.variance) if plain.df and plain.variance else 0.0
    return Noise(
        float(np.sqrt(pool.variance)), pool.df, bartlett(pool), levene(pool), removed, intraclass_correlation(pool)
    )


def intraclass_correlation(pool: Fit) -> float:
    """Return the share of a run's variance explained by a seed effect common to all cells, from mean squares.

    The mean square of seeds, adjusted for cells, is expected to be the noise variance plus that of the seed effect
    times the trace below over its degrees of freedom: the number of cells, if no run is missing (Henderson 1953).
    """
    seeds = len(pool.seeds) - 1
    explained = pool.without_blocks().rss - pool.rss
    if not seeds or explained <= 0:
        return 0.0
    each = float(np.sum(pool.known * (1 - 1 / pool.counts[:, None]))) / seeds
    between = max(0.0, (explained / seeds - pool.variance) / each)
    return between / (between + pool.variance) if between + pool.variance else 0.0


def bartlett(pool: Fit) -> float | None:
    """Return the p value of Bartlett's test (1937) that the residuals of all cells have the same variance.

    None with fewer than three cells of several runs: the residuals of two cells mirror each other.
    """
    several = pool.counts > 1
    free = pool.counts[several] - 1
    variances = np.nansum(pool.residuals[several] ** 2, axis=1) / free
    if len(free) < FEWEST_CELLS or not np.all(variances > 0):
        return None
    total = free.sum()
    statistic = total * np.log(free @ variances / total) - free @ np.log(variances)
    correction = 1 + ((1 / free).sum() - 1 / total) / (3 * (len(free) - 1))
    return float(chdtrc(len(free) - 1, max(0.0, statistic) / correction))


def levene(pool: Fit) -> float | None:
    """Return the p value of Levene's test around the median (Brown & Forsythe 1974) on the residuals.

    None with fewer than three cells of several runs, like `bartlett`.
    """
    rows = [row[~np.isnan(row)] for row in pool.residuals]
    sizes = [np.abs(row - np.median(row)) for row in rows if len(row) > 1]
    number, total = len(sizes), sum(map(len, sizes))
    if number < FEWEST_CELLS or total <= number:
        return None
    means, every = [size.mean() for size in sizes], np.concatenate(sizes)
    between = sum(len(s) * (m - every.mean()) ** 2 for s, m in zip(sizes, means, strict=True)) / (number - 1)
    within = sum(((s - m) ** 2).sum() for s, m in zip(sizes, means, strict=True)) / (total - number)
    return float(fdtrc(number - 1, total - number, between / within)) if within > 0 else None


def find_odd_cells(pool: Fit) -> tuple[Fit, tuple[str, ...]]:
    """Return the pool without cells far noisier than the others by Cochran's test, and the names of those cells.

    Cochran (1941): tests the largest variance against the rest and multiplies p by the number of cells; here the test
    is `noisier_than_rest`. Repeated until no cell is significant at ODD. A pool of two cells cannot be tested.
    """
    odd: list[str] = []
    while len(pool.cells) > 2 and np.isfinite(pool.own_variances).any():
        noisiest = pool.cells[int(np.nanargmax(pool.own_variances))]
        p, rest = noisier_than_rest(pool, noisiest)
        if rest is None or len(pool.cells) * p > ODD:
            break
        odd.append(noisiest)
        pool = rest
    return pool, tuple(odd)


def noisier_than_rest(pool: Fit, cell: str) -> tuple[float, Fit | None]:
    """Return the p value of the hypothesis that a cell is no noisier than the others, and the model of the others.

    Exact F test: what the cell adds to the sum of squares, compared with the model fitted without it.
    """
    rest = pool.without([cell])
    if rest is None or rest.df < 1 or rest.rss <= 0 or pool.df <= rest.df:
        return 1.0, None
    own = pool.df - rest.df
    return float(fdtrc(own, rest.df, max(0.0, pool.rss - rest.rss) / own / rest.variance)), rest


def variances(pool: Fit, reference: str) -> np.ndarray:
    """Return the noise variance used to judge each cell, (k,): the pool's, or the cell's own if that is larger.

    The reference enters every comparison, so it gets the pool's variance unless its own is significantly larger. If all
    cells got the pool's, a cell three times as noisy would raise the chance of a false verdict from 5% to 10%.
    """
    own = np.where(np.isnan(pool.own_variances), 0.0, pool.own_variances)
    used = np.maximum(own, pool.variance)
    at = pool.cells.index(reference)
    if noisier_than_rest(pool, reference)[0] > NOISY_REFERENCE:
        used[at] = pool.variance
    return used


def find_outliers(pool: Fit) -> tuple[tuple[str, int], ...]:
    """Return runs (cell, seed) whose residual is beyond FAR median absolute deviations of all residuals.

    Residuals are standardized, and the deviation is taken from the model fitted without the run, because an outlier
    also shifts the residuals of its cell and its seed. Runs are removed one at a time, farthest first. If residuals tie
    (two cells), the run farther from its cell's median is taken; in a cell of two runs the outlier is undetermined, so
    none is.
    """
    found: list[tuple[str, int]] = []
    left = pool
    while len(found) < pool.known.sum() // 4:
        sizes = np.nan_to_num(np.abs(left.standardized))
        distance = np.abs(left.table - np.nanmedian(left.table, axis=1, keepdims=True))
        largest = (sizes >= sizes.max() * (1 - 1e-6)) & (left.counts > 2)[:, None]
        row, column = divmod(int(np.nanargmax(np.where(largest, distance, -1.0))), len(left.seeds))
        run = (left.cells[row], left.seeds[column])
        rest = pool.without(runs=[*found, run])
        if not largest.any() or rest is None or rest.df < LEAST_FREEDOM:
            break
        if not sizes.max() > FAR * float(np.nanmedian(np.abs(rest.standardized))) > 0:
            break
        found.append(run)
        left = rest
    return tuple(sorted(found, key=lambda run: (pool.cells.index(run[0]), run[1])))
