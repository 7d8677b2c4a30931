"""Least squares of value ~ cell + seed over all runs: one estimate of the noise for all comparisons.

With k cells of n seeds each, the residuals of the additive model have (k - 1)(n - 1) degrees of freedom, instead of
n - 1 for each paired t test; a missing run costs one of them instead of a whole pair (Montgomery, Design and Analysis
of Experiments, chapter 4). The seeds are eliminated from the normal equations, so thousands of cells are cheap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ablatrix.orchestrator.report.simultaneous import Joint, product_loadings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ablatrix.orchestrator.report.statistics import Values


@dataclass(frozen=True)
class Fit:
    """The fitted additive model. blocks: False for value ~ cell, without seeds.

    cells: (k,) names; seeds: (n,); table: (k, n) values, nan where there is no run.
    """

    cells: tuple[str, ...]
    seeds: tuple[int, ...]
    table: np.ndarray
    blocks: bool = True

    @cached_property
    def known(self) -> np.ndarray:
        """Mask of the runs that exist, (k, n)."""
        return np.asarray(~np.isnan(self.table))

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of runs of each cell, (k,)."""
        return np.asarray(self.known.sum(axis=1), dtype=float)

    @property
    def df(self) -> int:
        """Degrees of freedom of the noise."""
        return int(self.known.sum()) - len(self.cells) - (len(self.seeds) - 1 if self.blocks else 0)

    @cached_property
    def _weights(self) -> np.ndarray:
        """Share of each seed in the mean of a cell, (k, n)."""
        return np.asarray(self.known / self.counts[:, None])

    @cached_property
    def _inverse(self) -> np.ndarray:
        """Generalized inverse of the normal equations of the seeds after eliminating the cells, (n, n)."""
        if not self.blocks:
            return np.zeros((len(self.seeds), len(self.seeds)))
        reduced = np.diag(self.known.sum(axis=0).astype(float)) - self._weights.T @ self.known
        return np.linalg.pinv(reduced, hermitian=True)

    @cached_property
    def seed_effects(self) -> np.ndarray:
        """What each seed adds to all cells, (n,), 0 on average."""
        values = np.where(self.known, self.table, 0.0)
        residual = np.where(self.known, self.table - (values.sum(axis=1) / self.counts)[:, None], 0.0)
        return np.asarray(self._inverse @ residual.sum(axis=0))

    @cached_property
    def means(self) -> np.ndarray:
        """Mean of each cell, adjusted for the seeds that it lacks, (k,)."""
        return np.asarray(np.where(self.known, self.table - self.seed_effects, 0.0).sum(axis=1) / self.counts)

    @cached_property
    def residuals(self) -> np.ndarray:
        """Residuals of the model, (k, n); nan where there is no run."""
        return np.asarray(self.table - self.means[:, None] - self.seed_effects)

    @cached_property
    def rss(self) -> float:
        """Sum of the squared residuals."""
        return float(np.nansum(self.residuals**2))

    @property
    def variance(self) -> float:
        """Noise variance of a run. Raises ZeroDivisionError if there are no degrees of freedom."""
        return self.rss / self.df

    @cached_property
    def freedom(self) -> np.ndarray:
        """Expected squared residual of each run over the noise variance: 1 - leverage, (k, n); 0 without a run."""
        inverse, cross = self._inverse, self._weights @ self._inverse
        leverage = np.diag(inverse) - 2 * cross + np.sum(cross * self._weights, axis=1)[:, None]
        return np.where(self.known, np.maximum(1 - leverage - 1 / self.counts[:, None], 0.0), 0.0)

    @cached_property
    def own_variances(self) -> np.ndarray:
        """Unbiased noise variance of each cell from its own residuals, (k,); nan without degrees of freedom."""
        free, squares = self.freedom.sum(axis=1), np.nansum(self.residuals**2, axis=1)
        return np.asarray(np.divide(squares, free, out=np.full(len(free), np.nan), where=free > 1e-9))

    @cached_property
    def standardized(self) -> np.ndarray:
        """Residuals over the square root of `freedom`, of equal variance, (k, n); nan where `freedom` is 0."""
        root = np.sqrt(self.freedom)
        return np.asarray(np.divide(self.residuals, root, out=np.full(root.shape, np.nan), where=root > 1e-5))

    def covariance(self, weights: np.ndarray) -> np.ndarray:
        """Return the covariance of contrasts, or of means over all seeds, in units of the noise variance, (m, m).

        weights (m, k): rows sum to 0, or to 1 for means.
        """
        seeds = weights @ self._weights
        return np.asarray((weights / self.counts) @ weights.T + seeds @ self._inverse @ seeds.T)

    def joint(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, Joint]:
        """Return estimates (m,), variances in units of the noise variance (m,) and the joint distribution of contrasts.

        weights (m, k): rows sum to 0.
        """
        covariance = self.covariance(weights)
        variances = np.diag(covariance)
        scale = np.sqrt(variances)
        loadings = product_loadings(covariance / np.outer(scale, scale), [1] * len(weights))
        return weights @ self.means, variances, Joint(loadings, self.df)

    def against(self, reference: str) -> tuple[np.ndarray, np.ndarray, Joint]:
        """Return `joint` of every other cell minus the reference, in order (m = k - 1): Dunnett's comparisons.

        Cells with the same seeds have the same correlations and form one group.
        """
        at = self.cells.index(reference)
        others = [i for i in range(len(self.cells)) if i != at]
        masks, group, numbers = np.unique(self.known[others], axis=0, return_inverse=True, return_counts=True)
        own = 1 / masks.sum(axis=1)
        seeds = masks * own[:, None] - self._weights[at]
        shared = 1 / self.counts[at] + seeds @ self._inverse @ seeds.T
        variances = own + np.diag(shared)
        scale = np.sqrt(variances)
        loadings = product_loadings(shared / np.outer(scale, scale), numbers.tolist())
        return self.means[others] - self.means[at], variances[group.ravel()], Joint(loadings, self.df)

    def without(self, cells: Sequence[str] = (), runs: Sequence[tuple[str, int]] = ()) -> Fit | None:
        """Return the fit without some cells, or without some runs (cell, seed); None if nothing remains."""
        table = self.table.copy()
        for cell, seed in runs:
            table[self.cells.index(cell), self.seeds.index(seed)] = np.nan
        known = ~np.isnan(table)
        rows = [i for i, name in enumerate(self.cells) if name not in cells and known[i].any()]
        columns = np.flatnonzero(known[rows].any(axis=0)).tolist()
        if not rows:
            return None
        left = table[np.ix_(rows, columns)]
        return Fit(tuple(self.cells[i] for i in rows), tuple(self.seeds[i] for i in columns), left, self.blocks)

    def without_blocks(self) -> Fit:
        """Return the fit of value ~ cell on the same runs."""
        return replace(self, blocks=False)


def fit(values: Mapping[str, Values], blocks: bool = True) -> Fit:
    """Fit the model to cells that all have runs; with blocks, common seeds must connect the cells."""
    seeds = tuple(sorted({seed for row in values.values() for seed in row}))
    table = np.array([[row.get(seed, np.nan) for seed in seeds] for row in values.values()], dtype=float)
    return Fit(tuple(values), seeds, table, blocks)


def connected(values: Mapping[str, Values], reference: str) -> dict[str, Values]:
    """Return the cells that common seeds connect with the reference, directly or through other cells."""
    seeds, found = set(values[reference]), {reference}
    while more := [name for name, row in values.items() if name not in found and not seeds.isdisjoint(row)]:
        found |= set(more)
        seeds |= {seed for name in more for seed in values[name]}
    return {name: row for name, row in values.items() if name in found}
