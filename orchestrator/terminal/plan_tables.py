"""A plan as tables, as a tree (study, cells, their changes, seeds) and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text
from rich.tree import Tree

from ablatrix.orchestrator.report.lr_schedules import QUARTERS, Schedule
from ablatrix.orchestrator.study import value_origins
from ablatrix.orchestrator.study.matrix import first_of_cells
from ablatrix.orchestrator.terminal import tables
from ablatrix.trainer.config import optimization
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.schedules import learning_rate

if TYPE_CHECKING:
    from rich.console import Console

    from ablatrix.orchestrator.study.design_comparison import Choice
    from ablatrix.orchestrator.study.experiment import Loaded
    from ablatrix.orchestrator.study.forecast import Forecast
    from ablatrix.orchestrator.study.matrix import Run
    from ablatrix.orchestrator.study.tuning import Tuning

LEFT = ("cell", "overrides", "seeds", "folder of the first")
DROPPED_FIRST = ("FLOPs/token", "folder of the first", "parameters", "seeds", "tokens/run", "hours/run")


def print_table(runs: Sequence[Run], folder: Path, hours: Mapping[str, float], console: Console) -> None:
    """Print a row per cell: its overrides, size, cost if known (`hours`), and first folder."""
    rows = []
    for cell, members in _by_cell(runs).items():
        first = members[0]
        rows.append(
            {
                "cell": cell,
                "overrides": "\n".join(f"{key}={spell(value)}" for key, value in first.overrides.items()) or "-",
                "seeds": " ".join(str(run.seed) for run in members),
                "parameters": _format(first.config.parameters, ","),
                "FLOPs/token": _format(first.config.flops_per_token, ".3g"),
                "tokens/run": _format(first.config.tokens, ","),
                "hours/run": f"{hours[cell]:.3g}" if cell in hours else "?" if hours else "",
                "folder of the first": first.id,
            }
        )
    title = f"{count(len(runs), 'run')} in {folder}/"
    layout = tables.Layout(left=LEFT, wrapped=("overrides",), dropped_first=DROPPED_FIRST)
    tables.print_table(title, rows, console, layout)


def describe_confirmation(tune: Tuning, runs: Sequence[Run]) -> str:
    """Return a sentence about the confirmation runs that follow the tuning runs, with their number."""
    compared = tune.compared(runs)
    seeds = " ".join(dict.fromkeys(str(run.seed) for run in compared))
    most = sum(not tune.is_tuning(run) for run in tune.largest(runs))
    return (
        f"these tune; {len(compared)} to {most} more runs follow, with seeds {seeds}: each cell at its best "
        f"{tune.setting}, and at the baseline's best"
    )


def print_schedules(found: Sequence[Schedule], console: Console) -> None:
    """Print a row per learning-rate schedule: its cells, its peak, and its rate over the run."""
    rows = []
    for schedule in found:
        settings = schedule.settings
        steps = {"step 1": 1, **{f"{part:.0%}": max(1, round(part * settings.max_iters)) for part in QUARTERS}}
        rows.append(
            {
                "cells": ", ".join(schedule.cells),
                "schedule": optimization.schedule_name(settings),
                "steps": f"{settings.max_iters:,}",
                "warm-up": f"{settings.warmup_steps:,}",
                "peak": f"{max(schedule.rates):.3g}",
                **{
                    name: f"{learning_rate(step, settings):.3g}"
                    for name, step in {**steps, "last": settings.max_iters}.items()
                },
            }
        )
    title = "Learning rate (equal schedules are listed once)"
    layout = tables.Layout(left=("cells", "schedule"), wrapped=("cells",), dropped_first=("50%",))
    tables.print_table(title, rows, console, layout)


def print_designs(choices: Sequence[Choice], found: Forecast, console: Console) -> None:
    """Print a row per design. found: the forecast for the study as planned."""
    noise, unit, runs = found.noise, found.measure.short_unit, found.cells * found.seeds
    scale, of = (noise.sigma, unit) if noise else (1.0, " SD")
    rows = [
        {
            "design": choice.design,
            "cells": str(choice.cells),
            "runs": str(choice.runs),
            found.hours_unit: f"{choice.hours:.3g}" if choice.hours is not None else "",
            "SE, SD": f"{choice.error:.2f}",
            f"SE,{unit}": f"{choice.error * noise.sigma:.2g}" if noise else "",
            f"SE,{of}, for {runs} runs": (
                f"{choice.equal_error * scale:.2g} ({count(choice.equal_seeds, 'seed')})"
                if choice.equal_error is not None
                else f"needs {2 * choice.cells}"
            ),
            "shows": choice.shows,
        }
        for choice in choices
    ]
    title = f"Designs of these features with {count(found.seeds, 'seed')}"
    layout = tables.Layout(left=("design", "shows"), wrapped=("shows",), dropped_first=(f"SE,{unit}",))
    tables.print_table(title, rows, console, layout)
    size = f" of {noise.sigma:.2g}{unit}: {noise.source}" if noise else "; set `noise:` for its size"
    console.print(
        f"SE: standard error of a feature's effect; SD: the noise of a run{size}", soft_wrap=True, highlight=False
    )


def tree(loaded: Loaded, runs: Sequence[Run], folder: Path) -> Tree:
    """Return a tree of the study, its cells with their changes and what sets them, and the seeds with their folders."""
    root = Tree(Text(f"{loaded.experiment.name}: {count(len(runs), 'run')} in {folder}/, from {loaded.file}"))
    for cell, members in _by_cell(runs).items():
        first = members[0]
        branch = root.add(Text(f"{cell} (parameters: {_format(first.config.parameters, ',')})"))
        set_by = value_origins.of_run(loaded, first.features, first.config)
        for key, value in first.overrides.items():
            branch.add(Text(f"{key}: {spell(value)}  ({value_origins.setter(set_by, key)})"))
        if not first.overrides:
            branch.add(Text("the base as it is"))
        seeds = branch.add(Text("seeds"))
        for run in members:
            seeds.add(Text(f"{run.seed}: {run.id}"))
    return root


def as_json(runs: Sequence[Run], folder: Path, launcher: str, hours: Mapping[str, float]) -> dict[str, Any]:
    """Return everything about each run, including its full configuration. hours: cell -> hours of a run, if known."""
    of_cells = {
        cell: {
            "parameters": run.config.parameters,
            "flops_per_token": run.config.flops_per_token,
            "tokens": run.config.tokens,
            "hours": hours.get(cell),
        }
        for cell, run in first_of_cells(runs).items()
    }
    return {
        "folder": str(folder),
        "launcher": launcher,
        "runs": [
            {
                "id": run.id,
                "cell": run.cell,
                "seed": run.seed,
                "features": list(run.features),
                "overrides": run.overrides,
                **of_cells[run.cell],
                "config": run.config.as_tree(),
            }
            for run in runs
        ],
    }


def _by_cell(runs: Sequence[Run]) -> dict[str, list[Run]]:
    ordered = groupby(runs, key=lambda run: run.cell)
    return {cell: list(members) for cell, members in ordered}


def _format(count: float | None, form: str) -> str:
    """Format a number; one that depends on a user's own component is unknown if that cannot be imported."""
    return "unknown" if count is None else format(count, form)
