"""The table of `status`: columns that fit the terminal, finished runs folded per cell, plain lines for pipes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ablatrix.orchestrator.status.run_state import RunState
from ablatrix.orchestrator.study.metric import COMMAND, NLL, Measure
from ablatrix.trainer.rundir import loss_csv
from ablatrix.trainer.rundir.console import visible

COLOURS = {
    "planned": "dim",
    "queued": "yellow",
    "running": "cyan",
    "stopped": "magenta",
    "done": "green",
    "failed": "bold red",
    "lost": "bold red",
    "cancelled": "red",
}
NUMBERS = ("step", "loss", "held-out", "tokens/s", "left")
COLUMNS = ("run", "state", *NUMBERS, "node", "job", "why")
REQUIRED = ("run", "state")
DROPPED_FIRST = ("tokens/s", "job", "node", "left", "loss", "held-out", "step")
NARROWEST_WHY = 24
FOLD_BEYOND = 60  # runs; what is done or waits is then one line per cell
MOST_ROWS = 200  # of a table with frames, which takes a millisecond a row
FOLDED = ("done", "queued", "planned")

Row = dict[str, str]


def status_table(
    states: Sequence[RunState], title: str, width: int, measure: Measure = NLL, everything: bool = False
) -> RenderableType:
    """Return one row per run, as wide as the terminal; beyond FOLD_BEYOND runs folded unless `everything`.

    measure: what the study compares, which stands in the place of the held-out loss.
    """
    if everything and len(states) > MOST_ROWS:
        return Group(Text(title), Text("\n".join(plain_lines(states, measure))))
    if everything or len(states) <= FOLD_BEYOND:
        rows = [_row(state, measure) for state in states]
    else:
        rows = _fold(states, measure)
    headings = _headings(measure)
    note = _limit(rows)
    names = _choose_columns([headings, *rows], width)
    if names is None:  # not even run and state fit beside each other
        lines = (" ".join(filter(None, (row["run"], row["state"], row["step"], row["why"]))) for row in rows)
        return Group(Text(title), *(Text(line, overflow="fold") for line in lines), *note)
    table = Table(title=Text(title), title_justify="left")
    for name in names:
        longest = max(len(row[name]) for row in (headings, *rows))
        least = min(longest, NARROWEST_WHY) if name == "why" else longest
        table.add_column(Text(headings[name]), no_wrap=name != "why", min_width=least, overflow="fold")
        table.columns[-1].justify = "right" if name in NUMBERS else "left"
    for row in rows:
        style = COLOURS.get(row["state"], "")
        table.add_row(*(Text(row[name], style=style if name == "state" else "") for name in names))
    reasons = [] if "why" in names else [Text(f"{row['run']}: {row['why']}") for row in rows if row["why"]]
    return Group(table, *reasons, *note)


def plain_lines(states: Iterable[RunState], measure: Measure = NLL) -> list[str]:
    """Return one line per run under a header, in aligned columns and uncut, for pipes and files."""
    rows = [_headings(measure), *(_row(state, measure) for state in states)]
    names = [name for name in COLUMNS if name in REQUIRED or any(row[name] for row in rows[1:])]
    widths = {name: max(len(row[name]) for row in rows) for name in names}

    def cell(row: Row, name: str) -> str:
        text = row[name]
        return text.rjust(widths[name]) if name in NUMBERS else text.ljust(widths[name])

    return ["  ".join(cell(row, name) for name in names).rstrip() for row in rows]


def _headings(measure: Measure) -> Row:
    row = dict(zip(COLUMNS, COLUMNS, strict=True))
    if measure.column != "loss" and measure.name not in (NLL.name, COMMAND.name):
        row["held-out"] = visible(measure.name)
    return row


def _row(state: RunState, measure: Measure) -> Row:
    speed = state.tokens_per_s if state.state in ("running", "done") else None
    row = {
        "run": state.run.id,
        "state": state.state,
        "step": f"{state.iter}/{state.max_iters}" if state.max_iters else str(state.iter or ""),
        "loss": loss(state.loss),
        "held-out": loss(state.val_loss if measure.column in loss_csv.COLUMNS else state.compared),
        "tokens/s": f"{speed:,.0f}" if speed else "",
        "left": duration(state.seconds_left) if state.state == "running" else "",
        "node": state.node if state.active else "",
        "job": state.job_id if state.state != "done" else "",
        "why": state.reason,
    }
    return {name: visible(" ".join(text.split())) for name, text in row.items()}


def _fold(states: Sequence[RunState], measure: Measure) -> list[Row]:
    """One row for all runs of a cell that are done (or wait), where their reason is the same; others as they are."""
    groups: dict[tuple[str, ...], list[RunState]] = {}
    for state in states:
        alone = () if state.state in FOLDED else (state.run.id,)
        groups.setdefault((state.run.cell, state.state, state.reason, *alone), []).append(state)
    rows = []
    for members in groups.values():
        row = _row(members[0], measure)
        if len(members) > 1:
            row = {**dict.fromkeys(COLUMNS, ""), "run": f"{members[0].run.cell} ({len(members)} runs)"}
            row |= {"state": members[0].state, "why": _row(members[0], measure)["why"]}
        rows.append(row)
    return rows


def _limit(rows: list[Row]) -> list[Text]:
    """Keep at most MOST_ROWS rows, first those that need attention; return what to say of the others."""
    more = len(rows) - MOST_ROWS
    if more <= 0:
        return []
    attention = [row for row in rows if row["state"] not in FOLDED]
    rows[:] = (attention + [row for row in rows if row["state"] in FOLDED])[:MOST_ROWS]
    return [Text(f"and {more:,} more rows; --all shows every run")]


def _choose_columns(lines: Sequence[Row], width: int) -> list[str] | None:
    """Return the columns that fit: empty ones go first, then those of DROPPED_FIRST, then the reasons (shown below).

    None where even run and state do not fit: they are never cut.
    """
    filled = [name for name in COLUMNS if name in REQUIRED or any(row[name] for row in lines[1:])]
    widths = {name: max(len(line[name]) for line in lines) for name in filled}
    widths["why"] = min(widths.get("why", 0), NARROWEST_WHY)
    for with_why in (True, False):
        names = [name for name in filled if with_why or name != "why"]
        for dropped in ("", *DROPPED_FIRST):
            names = [name for name in names if name != dropped]
            if sum(widths[name] + 3 for name in names) + 1 <= width:
                return names
    return None


def loss(value: float | None) -> str:
    """`2.3457`; '' for none."""
    return "" if value is None else f"{value:.4f}"


def duration(seconds: float | None) -> str:
    """`1:02:03` or `2:03`; '' where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
