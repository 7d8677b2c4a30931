"""The cost of a study: runs and tokens from the plan, hours from finished runs or from the speed of a smoke test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from ablatrix.orchestrator.study.matrix import first_of_cells
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.experiment import Experiment
    from ablatrix.orchestrator.study.matrix import Run
    from ablatrix.orchestrator.study.slurm_settings import SlurmSettings

SMOKE = "smoke"  # name of the smoke test's study, in the study's folder


def hours_per_run(
    folder: Path, runs: Sequence[Run], experiment: Experiment, finished: Mapping[str, float]
) -> dict[str, float]:
    """Return cell -> GPU-hours of one of its runs (node-hours without GPUs), for cells where these are known.

    finished: cell -> wall-clock hours of finished runs. For other cells, the hours are the run's steps times the median
    step time of the smoke test, first step excluded; they then do not include start-up and evaluations.
    """
    wall, smoke = dict(finished), folder / SMOKE
    cells = first_of_cells(runs) if smoke.is_dir() else {}
    for cell, run in cells.items():
        if cell not in wall and run.config.steps and (step := _seconds_per_step(smoke, cell)):
            wall[cell] = step * run.config.steps / 3600
    share = devices_per_run(experiment.slurm)
    return {cell: hours * share for cell, hours in wall.items()}


def devices_per_run(settings: SlurmSettings) -> float:
    """Return the GPUs (nodes without GPUs) that a run occupies."""
    return settings.nodes * max(1, settings.gpu_count) / settings.runs_per_job


def unit(settings: SlurmSettings) -> str:
    """Return the unit in which hours of a plan and its budget are given."""
    return "GPU-hours" if settings.gpu_count else "node-hours"


def _seconds_per_step(smoke: Path, cell: str) -> float | None:
    found = []
    for folder in smoke.glob(f"{cell}-seed*"):
        rows = loss_csv.parse_columns(run_files.read_text(folder / run_files.LOSS))
        times = [loss_csv.parse_number(row[loss_csv.COLUMNS.index("dt")]) for row in rows]
        found += [time for time in times[1:] or times if time is not None and 0 < time < math.inf]
    return median(found) if found else None


def require_within_budget(experiment: Experiment, runs: Sequence[Run], hours: Mapping[str, float]) -> None:
    """Raise UserError if the runs would exceed the experiment's `budget`, to the extent that their cost is known."""
    if experiment.budget is None or any(run.cell not in hours for run in runs):
        return
    total = sum(hours[run.cell] for run in runs)
    if total > experiment.budget:
        raise UserError(
            f"budget: {count(len(runs), 'run')} will take about {total:.3g} {unit(experiment.slurm)}, the budget is "
            f"{experiment.budget:g}; use fewer runs or steps, or give --over-budget"
        )


def describe(experiment: Experiment, runs: Sequence[Run], hours: Mapping[str, float]) -> str:
    """Return a summary such as `21 runs, 86 M tokens, about 12.3 GPU-hours of a budget of 40`."""
    each = [run.cell_config.tokens for run in runs]
    text = f"{count(len(runs), 'run')}"
    text += f", {sum(n or 0 for n in each) / 1e6:,.3g} M tokens" if None not in each else ""
    if all(run.cell in hours for run in runs):
        text += f", about {sum(hours[run.cell] for run in runs):.3g} {unit(experiment.slurm)}"
        text += f" of a budget of {experiment.budget:g}" if experiment.budget is not None else ""
    else:
        text += f"; hours are known after `submit --smoke N` (cells measured so far: {len(hours)})"
    return text
