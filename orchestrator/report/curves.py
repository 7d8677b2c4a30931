"""Curves of cells: means over seeds and differences from the baseline, on common token grids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ablatrix.orchestrator.report import breakdown
from ablatrix.orchestrator.report.figure_data import Series
from ablatrix.orchestrator.report.statistics import t_quantile

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.cell_result import CellResult
    from ablatrix.orchestrator.report.collect import RunRecord

BINS = 120


def tokens_of(run: RunRecord) -> np.ndarray:
    """Return the tokens at each row of the training curve (G,); from the configuration if loss.csv has none."""
    tokens = run.curve.train["tokens"]
    if np.isfinite(tokens).any() or not len(tokens):
        return tokens
    step = [run.setting("trainer.batch_size"), run.setting("data.block_size")]
    return run.curve.train["iter"] * (step[0] * step[1] if None not in step else 1)


def evaluations_of(run: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    """Return (tokens, value) of every evaluation; steps instead of tokens for a command that reports none."""
    tokens, _, values = run.evaluations
    if np.isfinite(tokens).any() or not len(tokens):
        return tokens, values
    return run.curve.held_out["iter"], values


def span(cells: list[CellResult]) -> float:
    """Return the largest number of tokens in any run, 1 if there is none."""
    ends = [float(t[-1]) for c in cells for r in c.runs if len(t := tokens_of(r)) and np.isfinite(t[-1])]
    return max(ends, default=1.0) or 1.0


def drawn(cell: CellResult) -> tuple[RunRecord, ...]:
    """Return the runs that a cell's curve averages: the usable ones, else all, as far as they got."""
    return cell.usable or cell.runs


def training(cell: CellResult, name: str, end: float, bins: int = BINS) -> Series:
    """Return a training column averaged in `bins` equal intervals of tokens up to `end`, then over seeds."""
    rows = [_binned(tokens_of(run), run.curve.train[name], end, bins) for run in drawn(cell)]
    return _mean_of(_centers(end, bins), rows, interval=False)


def training_seeds(cell: CellResult, name: str, end: float, bins: int = BINS) -> tuple[Series, ...]:
    """Return what `training` does, but for each run of a cell that has several."""
    grid = _centers(end, bins)
    rows = [_binned(tokens_of(run), run.curve.train[name], end, bins) for run in drawn(cell)]
    known = [(row, np.isfinite(row)) for row in rows]
    return tuple(Series(grid[there], row[there]) for row, there in known if there.any()) if len(rows) > 1 else ()


def held_out_seeds(cell: CellResult) -> tuple[Series, ...]:
    """Return the held-out NLL at every evaluation of each run of a cell that has several."""
    found = [evaluations_of(run) for run in drawn(cell)]
    return tuple(Series(x, y) for x, y in found if len(x) and np.isfinite(x).all()) if len(found) > 1 else ()


def tokens_per_step(cells: list[CellResult]) -> float | None:
    """Return the tokens per step if all runs agree on it; None if they differ or the axis is in steps."""
    found = set()
    for run in (run for cell in cells for run in drawn(cell) if run.curve.rows):
        tokens, steps = tokens_of(run)[-1], run.curve.train["iter"][-1]
        found.add(round(float(tokens / steps), 6) if np.isfinite(tokens) and steps else None)
    same = found.pop() if len(found) == 1 else None
    return same if same != 1 else None


def training_difference(cell: CellResult, base: CellResult, end: float, bins: int = 40) -> Series:
    """Return the training loss minus the baseline's of the same seed: equal batches, so most of the noise cancels."""
    rows = []
    for run, other in _pairs(drawn(cell), drawn(base)):
        mine = _binned(tokens_of(run), run.curve.train["loss"], end, bins)
        rows.append(mine - _binned(tokens_of(other), other.curve.train["loss"], end, bins))
    return _mean_of(_centers(end, bins), rows, interval=False)


def held_out(cell: CellResult) -> Series:
    """Return the held-out NLL at every evaluation, mean over seeds."""
    return _on_first([evaluations_of(run) for run in drawn(cell)], interval=False)


def by_context(cell: CellResult) -> Series:
    """Return the held-out NLL at each context length (x, tokens), mean over seeds.

    Without intervals: a seed shifts all cells alike, so the cells' intervals would overlap. The table has the intervals
    of the effects.
    """
    return _on_first([breakdown.context_curve(run) for run in cell.usable], interval=False)


def held_out_difference(cell: CellResult, base: CellResult) -> Series:
    """Return the held-out NLL minus the baseline's of the same seed and tokens, with its t interval over seeds."""
    curves = []
    for run, other in _pairs(cell.usable, base.usable):
        (x, y), (bx, by) = evaluations_of(run), evaluations_of(other)
        if len(x) and len(bx):
            both = (x >= bx[0]) & (x <= bx[-1])
            curves.append((x[both], y[both] - np.interp(x[both], bx, by)))
    return _on_first(curves, interval=True)


def _pairs(runs: tuple[RunRecord, ...], others: tuple[RunRecord, ...]) -> list[tuple[RunRecord, RunRecord]]:
    by_seed = {run.seed: run for run in others}
    return [(run, by_seed[run.seed]) for run in runs if run.seed in by_seed]


def _on_first(curves: list[tuple[np.ndarray, np.ndarray]], interval: bool) -> Series:
    """Return the mean of curves at the points of the longest one; a curve has no value outside its own points."""
    curves = [(x, y) for x, y in curves if len(x) and np.isfinite(x).all()]
    if not curves:
        return Series(np.empty(0), np.empty(0))
    grid = max((x for x, _ in curves), key=len)
    return _mean_of(grid, [np.interp(grid, x, y, left=np.nan, right=np.nan) for x, y in curves], interval)


def _centers(end: float, bins: int) -> np.ndarray:
    return (np.arange(bins) + 0.5) * end / bins


def _binned(x: np.ndarray, y: np.ndarray, end: float, bins: int) -> np.ndarray:
    """Return the mean of y in each of `bins` equal parts of [0, end]; empty parts are interpolated."""
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return np.full(bins, np.nan)
    index = np.clip(x[known] / end * bins, 0, bins - 1).astype(int)
    counts = np.bincount(index, minlength=bins)
    sums = np.bincount(index, weights=y[known], minlength=bins)
    centers = np.arange(bins)
    have = counts > 0
    return np.interp(centers, centers[have], sums[have] / counts[have], left=np.nan, right=np.nan)


def _mean_of(x: np.ndarray, rows: list[np.ndarray], interval: bool) -> Series:
    """Return the mean over rows at each x where every row has a value: a run that ends early must not cause a jump."""
    rows = [row for row in rows if np.isfinite(row).any()]
    if not rows:
        return Series(np.empty(0), np.empty(0))
    table = np.stack(rows)  # (seeds, P)
    known = np.isfinite(table).all(axis=0)
    table, x = table[:, known], x[known]
    mean = table.mean(axis=0)
    if not interval or len(rows) < 2:
        return Series(x, mean)
    half = t_quantile(len(rows) - 1) * table.std(axis=0, ddof=1) / np.sqrt(len(rows))
    return Series(x, mean, mean - half, mean + half)
