"""The verb `report`: compare the cells of a study, and studies with each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import build, next_stage
from ablatrix.orchestrator.status import removed_files, run_state, study_state
from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.submit import notifications
from ablatrix.orchestrator.terminal import printing, tables

if TYPE_CHECKING:
    from rich.console import Console

    from ablatrix.orchestrator.report.build import Report
    from ablatrix.orchestrator.report.figure_data import Forest

DROPPED_FIRST = ("parameters", "p (corrected)", "p", "runs", "95% interval", "interval")


def report(
    studies: Sequence[str],
    output: Path,
    console: Console,
    *,
    pdf: bool = False,
    as_json: bool = False,
    notify: bool = False,
) -> None:
    """Write the report of each study, and one that compares several; print the verdicts, or everything as JSON.

    notify: send the message that the study has ended; used by the report job, which runs when all runs have ended.
    """
    found = [study_dir.find_study(name, output) for name in studies or (None,)]
    reasons, made = [], []
    for study in found:
        states = study_state.collect(study)
        reasons.append(run_state.reasons(states))
        removed = removed_files.list_all(study, states)
        for line in removed if not as_json else ():
            console.print(line, soft_wrap=True)
        made.append(build.build(study.folder, reasons[-1], pdf))
        if not as_json:
            _print_verdict(made[-1], console)
        if notify:
            stages = next_stage.find_stages(study, states)
            notifications.Notifier(study).send(states, stages, ended=True, results=made[-1].results)
    both = build.compare([study.folder for study in found], reasons) if len(found) > 1 else None
    if as_json:
        record = {"schema": build.SCHEMA, "studies": [one.record for one in made], **(both.record if both else {})}
        printing.print_json(record)
    elif both and both.differences:
        _print_differences(both, both.differences, console)
    elif both:
        _print_verdict(both, console)


def _print_differences(made: Report, found: Forest, console: Console) -> None:
    """Print the tested differences between studies, below the studies' own tables."""
    rows = [dict(zip((found.first, *found.head), (row.label, *row.cells), strict=True)) for row in found.rows]
    layout = tables.Layout(left=(found.first, "verdict"), wrapped=(found.first,), dropped_first=DROPPED_FIRST)
    tables.print_table(f"{made.name}: {found.x_label}", rows, console, layout)
    _print_notes_and_page(made, console)


def _print_verdict(made: Report, console: Console) -> None:
    """Print the result in one sentence, the verdict table, and the path of the page."""
    console.print(made.headline, soft_wrap=not console.is_terminal)
    measure = made.measure
    rows = [
        {
            "cell": row.cell,
            "effect": row.text.effect,
            "verdict": row.text.verdict,
            made.interval_name: row.text.interval,
            measure.short_name: row.text.value,
            "runs": row.text.runs,
            made.p_name: row.text.p,
            "parameters": row.text.parameters,
        }
        for row in made.rows
    ]
    title = f"{made.name}: {measure.label} against the baseline; {measure.better} is better"
    left = ("cell", "verdict")
    layout = tables.Layout(left=left, wrapped=("verdict",), dropped_first=DROPPED_FIRST)
    tables.print_table(title, rows, console, layout)
    for sentence in made.more:
        console.print(sentence, soft_wrap=not console.is_terminal)
    _print_notes_and_page(made, console)


def _print_notes_and_page(made: Report, console: Console) -> None:
    for note in made.notes:
        console.print(f"note: {note}")
    page = next((path for path in made.paths if path.name == "report.html"), None)
    if page:
        console.print(f"report: {page}", soft_wrap=True)
