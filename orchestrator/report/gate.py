"""The gate of a scale axis, `stop_if: hurts`: larger sizes of a cell that hurts at a smaller one are not queued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import analysis
from ablatrix.orchestrator.report.decisions import Verdict
from ablatrix.orchestrator.report.formatting import join_names
from ablatrix.orchestrator.report.stages import ENDED, NOT_NEEDED, Stages, is_needless

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.collect import Study


def find_stages(study: Study) -> Stages:
    """Return the runs beyond the first size, and a line for `status` on each size that has ended.

    A size is judged once all of its needed runs have ended, exactly as the report would judge it then.
    """
    if study.stop_if is None:
        return Stages()
    later: dict[str, str] = {}
    lines: list[str] = []
    stopped: dict[str, str] = {}  # cell -> the size at which it hurts
    waits = ""
    for number, size in enumerate(study.sizes):
        part = study.at_size(size)
        if number:
            later |= _runs_of_size(part, stopped, waits)
        needed = [run for run in part.runs if not is_needless(later.get(run.id, ""))]
        if not waits and needed and all(run.state in ENDED for run in needed):
            found = analysis.analyze(part.with_runs(needed))
            hurts = [cell.name for cell in found.compared if cell.verdict is Verdict.HURTS]
            stopped |= dict.fromkeys(hurts, size)
            lines.append(f"{size} has ended: " + (f"{join_names(hurts)} stopped (hurts)" if hurts else "no cell hurts"))
        elif not waits:
            waits = f"waits for the runs at {size} to end"
    return Stages(later, lines, lines)


def _runs_of_size(part: Study, stopped: Mapping[str, str], waits: str) -> dict[str, str]:
    """Return the runs of a size: id -> why it is not queued, '' if it is due. The baseline runs if any cell does."""
    idle = all(name in stopped for name, runs in part.cells.items() if runs[0].features)
    found = {}
    for run in part.runs:
        if run.cell in stopped:
            found[run.id] = f"{NOT_NEEDED}: {run.cell} hurts at {stopped[run.cell]}"
        else:
            found[run.id] = f"{NOT_NEEDED}: every cell hurts at a smaller size" if idle else waits
    return found


def shown_part(study: Study) -> Study:
    """Return the study without the runs that the gate will never queue."""
    later = find_stages(study).later
    return study.with_runs(
        run for run in study.runs if run.state != "planned" or not is_needless(later.get(run.id, ""))
    )
