"""Estimates for a plan from finished runs in the output folder: the noise between seeds, and hours per run."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.status import device_hours
from ablatrix.orchestrator.store import run_facts
from ablatrix.orchestrator.store.study_dir import STUDY, read_plan
from ablatrix.orchestrator.study.designs import is_aa
from ablatrix.orchestrator.study.forecast import Noise
from ablatrix.orchestrator.study.metric import Measure
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.events import read_events

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.matrix import Run

MOST_READ = 200  # finished runs of a study that are read for its noise
MOST_TIMED = 60  # runs whose time is read, at least one of each cell
LIMIT = 0.8  # confidence level of the noise's upper limit

Values = Mapping[str, Mapping[int, float]]  # cell -> seed -> final value


@dataclass(frozen=True)
class EarlierResults:
    """Estimates. noise: of the study with most degrees of freedom; hours: cell -> wall-clock hours of one run."""

    noise: Noise | None = None
    hours: Mapping[str, float] = field(default_factory=dict)


def find(folder: Path, runs: Sequence[Run]) -> EarlierResults:
    """Return the results of the study in `folder` and of those beside it that have the same baseline.

    Baselines are the same if their hashes, and so all settings, are equal.
    """
    marks = {_hash(run.id) for run in runs if run.cell == runs[0].cell}
    best, noise = 0, None
    cells: dict[str, str] = {}
    times: dict[str, list[float]] = defaultdict(list)
    for study, record in _studies(folder.parent, marks):
        cells = cells or _cells_to_time(runs)
        measure = Measure(**record.get("measure", {}))
        if measure != runs[0].config.measure:
            continue
        values: dict[str, dict[int, float]] = defaultdict(dict)
        # tuning runs at the edge of a grid differ by more than seeds do
        tune = (record.get("tune") or {}).get("seeds", ())
        sizes = {run.get("size") for run in record["runs"] if _hash(run["id"]) in marks}  # noise depends on the size
        read = 0
        for run in record["runs"]:
            cell = cells.get(_hash(run["id"]), "")
            summary = _read_finished(study / run["id"]) if cell or read < MOST_READ else None
            if summary is None:
                continue
            read += 1
            # an A/A check uses different seeds than the other cells, so the seeds' noise would not cancel
            apart = run["seed"] in tune or is_aa(run["cell"], run.get("features") or ())
            compared = run.get("size") in sizes and not apart
            if compared and (value := _final_value(summary, measure)) is not None:
                values[run["cell"]][run["seed"]] = value
            if cell and (hours := _wall_hours(study / run["id"])):
                times[cell].append(hours)
        sigma, freedom = residual_sd(values)
        if freedom > best:
            source = f"measured in {study}, its upper {LIMIT:.0%} limit"
            best, noise = freedom, Noise(_upper_limit(sigma, freedom), source)
    return EarlierResults(noise, {cell: fmean(found) for cell, found in times.items() if found})


def _cells_to_time(runs: Sequence[Run]) -> dict[str, str]:
    """Return hash -> cell of the runs whose time is read, some of each cell because a hash takes 0.1 ms."""
    by_cell: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_cell[run.cell].append(run)
    each = max(1, MOST_TIMED // len(by_cell))
    return {_hash(run.id): cell for cell, members in by_cell.items() for run in members[:each]}


def _hash(run: str) -> str:
    return run.rpartition("-")[2]


def _studies(output: Path, marks: set[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(output.glob(f"*/{STUDY}")):
        text = run_files.read_text(path)
        if any(f'-{mark}"' in text for mark in marks):
            with contextlib.suppress(UserError):  # a corrupt study.json
                yield path.parent, read_plan(path.parent)


def _read_finished(run: Path) -> dict[str, Any] | None:
    """Return the summary of a run that has finished and did not diverge."""
    try:
        summary = run_facts.read_summary(run)
    except OSError:
        return None
    return None if not summary or summary.get("diverged") else summary


def _final_value(summary: Mapping[str, Any], measure: Measure) -> float | None:
    """Return the final value of the measure, None if the run's final value is of a different column."""
    value = summary.get("final_value", summary.get("val_nll")) if measure.is_of(summary) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _wall_hours(run: Path) -> float:
    uses = device_hours.uses_of(run.name, read_events(run, newest_only=("heartbeat", "checkpoint")))
    return sum(use.end - use.start for use in uses) / 3600


def residual_sd(values: Values) -> tuple[float, int]:
    """Return the residual standard deviation of the additive model cell + seed, and its degrees of freedom.

    (nan, 0) if there are too few values. Means of cells and seeds are removed in turn, which converges to the least
    squares fit even if runs are missing.
    """
    rest = {(cell, seed): value for cell, found in values.items() for seed, value in found.items()}
    names = [(axis, name) for axis in (0, 1) for name in dict.fromkeys(key[axis] for key in rest)]
    groups = [[key for key in rest if key[axis] == name] for axis, name in names]
    freedom = len(rest) - len(groups) + 1
    if freedom < 1 or not rest:
        return math.nan, 0
    for _ in range(30):
        for group in groups:
            mean = fmean(rest[key] for key in group)
            rest |= {key: rest[key] - mean for key in group}
    return math.sqrt(sum(value**2 for value in rest.values()) / freedom), freedom


def _upper_limit(sigma: float, freedom: int) -> float:
    """Return sigma sqrt(freedom / chi2), with the chi-squared quantile approximated by Wilson and Hilferty (1931)."""
    part = 2 / (9 * freedom)
    quantile = freedom * (1 - part + NormalDist().inv_cdf(1 - LIMIT) * math.sqrt(part)) ** 3
    return sigma * math.sqrt(freedom / max(quantile, 1e-9))
