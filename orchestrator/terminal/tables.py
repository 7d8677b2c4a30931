"""Tables and live progress for the terminal."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.slurm.queue_view import Scheduler
from ablatrix.orchestrator.status import cost, run_state, study_state
from ablatrix.orchestrator.status.run_state import RunState
from ablatrix.orchestrator.store import job_log, log_tail, study_dir
from ablatrix.orchestrator.store.study_dir import Study, StudyRun
from ablatrix.orchestrator.study import dotted, run_config
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.orchestrator.study.metric import NLL, Measure
from ablatrix.orchestrator.terminal import printing
from ablatrix.orchestrator.terminal.status_table import loss, plain_lines, status_table
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.console import visible

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.build import Report

REFRESH_SECONDS = 2.0
WRAPPED = ("overrides", "verdict")  # columns whose cells may go over several lines
WIDEST = 20  # of such a column, when it is decided which columns fit
PLAN_DROPPED = ("FLOPs/token", "folder of the first", "parameters", "seeds", "tokens/run", "hours/run")
VERDICT_DROPPED = ("p (Holm)", "runs", "95% interval")
MOST_ROWS = 40  # of a live table; the whole is in `status`


def plan_table(runs: Sequence[Run], folder: Path, hours: Mapping[str, float]) -> Table:
    """The runs, one row a cell: what it overrides, its size, its cost where known, and where it will go."""
    by_cell: dict[str, list[Run]] = {}
    for run in runs:
        by_cell.setdefault(run.cell, []).append(run)
    table = Table(title=Text(f"{len(runs)} runs in {folder}/"), title_justify="left")
    for name in ("cell", "overrides", "seeds"):
        table.add_column(name)
    for name in ("parameters", "FLOPs/token", "tokens/run", *(["hours/run"] if hours else [])):
        table.add_column(name, justify="right")
    table.add_column("folder of the first")
    for cell, group in by_cell.items():
        config = group[0].config
        table.add_row(
            cell,
            Text("\n".join(f"{key}={spell(value)}" for key, value in group[0].overrides.items()) or "-"),
            " ".join(str(run.seed) for run in group),
            known(run_config.parameters(config), ","),
            known(run_config.flops_per_token(config), ".3g"),
            known(cost.tokens(group[0]), ","),
            *([f"{hours[cell]:.3g}" if cell in hours else "?"] if hours else []),
            group[0].id,
        )
    return table


def fit_columns(table: Table, width: int, dropped: Sequence[str]) -> Table:
    """Take columns out of a table until it fits: empty ones first, then `dropped` in their order. Nothing is cut."""
    empty = [str(c.header) for c in table.columns if {*map(str, c.cells)} <= {"", "-", "unknown"}]
    for name in (*empty, *dropped):
        if _total_width(table) <= width:
            break
        table.columns[:] = [column for column in table.columns if column.header != name]
    fits = _total_width(table) <= width
    for column in table.columns:
        column.overflow = "fold"
        column.min_width = _width(column) if fits else None
    return table


def _total_width(table: Table) -> int:
    return sum(_width(column) + 3 for column in table.columns) + 1


def _width(column: Column) -> int:
    """The width that a column needs, or WIDEST if its cells may go over several lines."""
    lines = [line for cell in (column.header, *column.cells) for line in str(cell).splitlines()]
    longest = max(map(cell_len, lines), default=0)
    return min(longest, WIDEST) if column.header in WRAPPED else longest


def known(count: int | None, form: str) -> str:
    """A model's figure; with a component of the user's own it is known only where that can be imported."""
    return "unknown" if count is None else format(count, form)


def print_states(
    states: Sequence[RunState], title: str, console: Console, measure: Measure = NLL, everything: bool = False
) -> None:
    """Print the table of `status`: framed on a terminal, one uncut line per run where the output is piped."""
    if console.is_terminal:
        console.print(status_table(states, title, console.width, measure, everything))
    else:
        console.file.write("\n".join([visible(title), *plain_lines(states, measure), ""]))


def summary_line(states: Sequence[RunState], scheduler: Scheduler) -> str:
    """`7 runs: 3 done, 2 running, 2 queued`, and the controller's silence if there is one."""
    counts = Counter(state.state for state in states)
    text = f"{len(states)} runs: " + ", ".join(f"{counts[name]} {name}" for name in run_state.STATES if counts[name])
    if scheduler.silent_since and not commands.available():
        text += "\nno Slurm on this machine; its jobs are judged by what they write"
    elif scheduler.silent_since:
        since = time.strftime("%H:%M:%S", time.localtime(scheduler.silent_since))
        text += (
            f"\nSlurm's controller not answering since {since} ({scheduler.problem}); the last known states are shown"
        )
    return text


def watch(
    study: Study, console: Console, go_on: Callable[[Sequence[RunState], Scheduler], bool] | None = None
) -> list[RunState]:
    """Show the study's state live until the user leaves.

    go_on: called after each refresh; with it, until it is false and nothing is queued or running.
    """
    scheduler = Scheduler()
    with LiveStatus(study, console, scheduler) as live:
        while True:
            states = live.refresh()
            if go_on and not go_on(states, scheduler) and not any(state.active for state in states):
                return states
            time.sleep(REFRESH_SECONDS)


class LiveStatus:
    """A table that refreshes in place; on something that is no terminal, a line whenever the counts change."""

    def __init__(self, study: Study, console: Console, scheduler: Scheduler) -> None:
        self.study, self.console, self.scheduler = study, console, scheduler
        self.live = Live(console=console, auto_refresh=False, vertical_overflow="visible")
        self.states: list[RunState] = []
        self._line, self._next = "", 0.0

    def __enter__(self) -> LiveStatus:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def refresh(self) -> list[RunState]:
        """Read the states again and show them. What cannot be read for a while leaves the last states standing.

        Raises RunError where the study is gone: runs without files would look as if they had never begun.
        """
        problem = ""
        try:
            self.study.require()
            self.states = study_state.collect(self.study, self.scheduler)
        except OSError as error:
            problem = f"\n{error.filename or self.study.folder}: {error.strerror}; the last known states are shown"
        line = summary_line(self.states, self.scheduler) + problem
        if self.console.is_terminal:
            order = {name: i for i, name in enumerate(("running", "failed", "lost", "stopped", "queued"))}
            shown = sorted(self.states, key=lambda state: order.get(state.state, 9))
            if len(shown) > MOST_ROWS:
                line += f" (the first {MOST_ROWS} shown)"
            table = status_table(shown[:MOST_ROWS], str(self.study.folder), self.console.width, self.study.measure)
            self.live.update(Group(table, line), refresh=True)
        elif line != self._line:
            self.console.print(f"{time.strftime('%H:%M:%S')} {line}")
        self._line = line
        return self.states

    def tick(self) -> None:
        """Refresh when it is time: for callers that come by more often."""
        if time.monotonic() >= self._next:
            self.refresh()
            self._next = time.monotonic() + REFRESH_SECONDS


def print_verdict(report: Report, console: Console) -> None:
    """The report's verdict table, its sentences, and where its files are."""
    measure = report.measure
    title = f"{report.name}: {measure.label} against the baseline; {measure.better} is better"
    table = Table(title=Text(title), title_justify="left")
    for name in ("cell", "runs", measure.name.removesuffix(" NLL"), "effect", "95% interval", "p (Holm)", "verdict"):
        table.add_column(name, justify="left" if name in ("cell", "verdict") else "right")
    for row in report.rows:
        table.add_row(
            Text(row.cell),
            f"{row.done}/{row.total}",
            loss(row.value),
            "" if row.effect is None else f"{row.effect:+.4f}",
            f"{row.interval[0]:+.4f} to {row.interval[1]:+.4f}" if row.interval else "",
            "" if row.p_value is None else f"{row.p_value:.3g}",
            Text(row.verdict),
        )
    console.print(fit_columns(table, console.width, VERDICT_DROPPED))
    for note in report.notes:
        console.print(f"note: {note}")
    page = next((path for path in report.paths if path.name == "report.html"), None)
    if page:
        console.print(f"report: {page}", soft_wrap=True)


def difference_table(one: StudyRun, two: StudyRun, rows: Sequence[tuple[str, str, str]]) -> Table:
    """What differs between two runs."""
    table = Table(title=Text(f"{len(rows)} differences"), title_justify="left")
    for name in ("what", one.id, two.id):
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def print_config(values: Mapping[str, object], origins: Mapping[str, str], console: Console) -> None:
    """Every setting of a run with its value and, where known, what set it."""
    words = {key: "" if value is None else spell(value) for key, value in values.items()}
    key_width = max(map(len, words), default=0)
    value_width = min(max(map(len, words.values()), default=0), 40)
    for key, text in words.items():
        line = f"{key:{key_width}}  {text:{value_width}}  {origins.get(key, '')}".rstrip()
        console.print(line, soft_wrap=True)


def print_run(study: Study, run: StudyRun, console: Console) -> None:
    """One run in full: state, overrides, configuration, files, the end of its log."""
    print_states([study_state.state_of(study, run)], str(run.folder), console, study.measure)
    overrides = ", ".join(f"{key}={spell(value)}" for key, value in run.overrides.items())
    if run in study.runs:  # of one that was left beside they are not known
        console.print(f"overrides: {overrides or 'none (the baseline)'}")
    config = dotted.flatten(run_files.read_json(run.folder / run_files.CONFIG) or {})
    print_config(config, run_files.read_json(run.folder / study_dir.ORIGINS) or {}, console)
    command = run_files.read_text(run.folder / run_files.ARGS).strip()
    if command:
        console.print(f"command: {command}", soft_wrap=True)
    files = sorted(path.name for path in run.folder.glob("[!.]*"))
    console.print(f"files: {', '.join(files)}")
    log = job_log.of_unstarted(run.folder) or run.folder / run_files.JOB_OUT
    tail = printing.log_text(log_tail.tail_text(log)).splitlines()[-10:]
    if tail:
        console.print(f"last lines of {log}:", *(f"  {line}" for line in tail), sep="\n")
