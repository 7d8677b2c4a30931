"""The table of `status`: finished and waiting runs folded per cell in a large study, one line per run in a pipe."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.text import Text

from ablatrix.orchestrator.report.stages import NOT_NEEDED, is_needless
from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.status import run_state
from ablatrix.orchestrator.study.metric import COMMAND, NLL, Measure
from ablatrix.orchestrator.terminal import tables
from ablatrix.trainer.rundir import loss_csv
from ablatrix.trainer.rundir.console import count, visible

if TYPE_CHECKING:
    from ablatrix.orchestrator.slurm.scheduler import Scheduler
    from ablatrix.orchestrator.status.run_state import RunState

COLORS = {
    "planned": "dim",
    "queued": "yellow",
    "running": "cyan",
    "stopped": "magenta",
    "done": "green",
    "failed": "bold red",
    "lost": "bold red",
    "cancelled": "red",
}
HELD_OUT = "held-out"
COLUMNS = ("run", "state", "step", "loss", HELD_OUT, "tokens/s", "left", "node", "job", "why")
LEFT = ("run", "state", "node", "job", "why")
FOLD_BEYOND = 60  # runs; in larger studies, finished and waiting runs are one row per cell
MOST_ROWS = 200  # of a framed table, which takes a millisecond per row
FOLDED = ("done", "queued", "planned")


def print_states(
    states: Sequence[RunState], title: str, console: Console, measure: Measure = NLL, everything: bool = False
) -> None:
    """Print the table of `status`: framed on a terminal, one uncut line per run in a pipe."""
    if console.is_terminal and not (everything and len(states) > MOST_ROWS):
        console.print(status_table(states, title, console.width, measure, everything))
    else:
        rows = [_row(state, measure) for state in states]
        console.file.write("\n".join([visible(title), *tables.align(rows, _columns(measure), LEFT), ""]))


def status_table(
    states: Sequence[RunState], title: str, width: int, measure: Measure = NLL, everything: bool = False
) -> RenderableType:
    """Return a table of the given width with a row per run, folded beyond FOLD_BEYOND runs unless `everything`.

    measure: the measure that the study compares, shown instead of the held-out loss.
    """
    rows = [_row(state, measure) for state in states]
    if not everything and len(states) > FOLD_BEYOND:
        rows = _fold(states, rows)
    more = len(rows) - MOST_ROWS
    if more > 0:  # rows that need attention come first
        rows = sorted(rows, key=lambda row: row["state"] in FOLDED)[:MOST_ROWS]
    note = [Text(f"and {more:,} more rows; --all shows every run")] if more > 0 else []
    columns = _columns(measure)
    dropped = ("tokens/s", "job", "node", "left", "loss", columns[COLUMNS.index(HELD_OUT)], "step")
    layout = tables.Layout(columns, LEFT, ("why",), dropped, below="why", styles=COLORS)
    table = tables.fit_table(title, rows, width, layout)
    return Group(table, *note)


def count_states(states: Sequence[RunState]) -> dict[str, int]:
    """Return state -> number of runs; runs that a study in stages will never queue are `not needed`."""
    needless = [state for state in states if state.state == "planned" and is_needless(state.reason)]
    counts = Counter(state.state for state in states)
    counts.update({"planned": -len(needless), NOT_NEEDED: len(needless)})
    return {name: counts[name] for name in (*run_state.STATES, NOT_NEEDED) if counts[name]}


def describe_counts(states: Sequence[RunState]) -> str:
    """Return the number of runs in each state, such as `3 done, 2 running, 2 queued`."""
    return ", ".join(f"{number} {name}" for name, number in count_states(states).items())


def summary_line(states: Sequence[RunState], scheduler: Scheduler) -> str:
    """Return a summary such as `7 runs: 3 done, 4 queued; 1.5 GPU-hours`, and any silence of the controller."""
    text = f"{count(len(states), 'run')}: {describe_counts(states)}"
    hours = run_state.total_hours(states)
    text += f"; {hours}" if hours.gpu or hours.cpu else ""
    if scheduler.silent_since and not commands.available():
        text += "\nno Slurm on this machine; its jobs are judged by what they write"
    elif scheduler.silent_since:
        since = time.strftime("%H:%M:%S", time.localtime(scheduler.silent_since))
        text += f"\nSlurm has not answered since {since} ({scheduler.problem}); the last known states are shown"
    return text


def _columns(measure: Measure) -> tuple[str, ...]:
    """Return the headings; a study that compares a different measure shows it instead of the held-out loss."""
    default = measure.column == "loss" or measure.name in (NLL.name, COMMAND.name, *COLUMNS)
    return tuple(visible(measure.name) if name == HELD_OUT and not default else name for name in COLUMNS)


def _row(state: RunState, measure: Measure) -> tables.Row:
    speed = state.tokens_per_s if state.state in ("running", "done") else None
    compared = state.val_loss if measure.column in loss_csv.COLUMNS else state.compared
    cells = (
        state.run.id,
        state.state,
        f"{state.iter}/{state.max_iters}" if state.max_iters else str(state.iter or ""),
        tables.format_loss(state.loss),
        tables.format_loss(compared),
        f"{speed:,.0f}" if speed else "",
        format_duration(state.seconds_left) if state.state == "running" else "",
        state.node if state.active else "",
        state.job_id if state.state != "done" else "",
        state.reason,
    )
    return {name: visible(" ".join(cell.split())) for name, cell in zip(_columns(measure), cells, strict=True)}


def _fold(states: Sequence[RunState], rows: Sequence[tables.Row]) -> list[tables.Row]:
    """Merge the rows of a cell's runs that are done or waiting for the same reason; return other rows unchanged."""
    groups: dict[tuple[str, ...], list[tables.Row]] = {}
    for state, row in zip(states, rows, strict=True):
        alone = () if state.state in FOLDED else (state.run.id,)
        groups.setdefault((state.run.cell, state.state, state.reason, *alone), []).append(row)
    folded = []
    for (cell, *_), members in groups.items():
        row = members[0]
        if len(members) > 1:
            kept = {"run": f"{cell} ({len(members)} runs)", "state": row["state"], "why": row["why"]}
            row = dict.fromkeys(row, "") | kept
        folded.append(row)
    return folded


def format_duration(seconds: float | None) -> str:
    """Format a duration as `1:02:03` or `2:03`; '' if unknown."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
