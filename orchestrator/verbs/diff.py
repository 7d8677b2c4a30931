"""The verb `diff`: show what differs between two runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.study import dotted
from ablatrix.orchestrator.terminal import printing, tables
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.rundir import recorded_inputs, run_files
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from rich.console import Console

    from ablatrix.orchestrator.store.study_dir import Study, StudyRun

IGNORED = ("system.work_dir", "command", "submitted")
INPUTS = (*recorded_inputs.SETTINGS, recorded_inputs.DATA)


def diff(first: str, second: str, study: str | None, output: Path, console: Console, *, as_json: bool = False) -> None:
    """Print what differs between two runs in configuration, data, code and environment."""
    one, two = _find_pair(study_dir.find_study(study, output), first, second)
    rows = find_differences(one, two)
    if as_json:
        found_rows = [dict(zip(("what", "first", "second"), row, strict=True)) for row in rows]
        printing.print_json({"runs": [one.id, two.id], "differences": found_rows})
        return
    names = ("what", one.id, two.id)
    table = [dict(zip(names, row, strict=True)) for row in rows]
    tables.print_table(count(len(rows), "difference"), table, console, tables.Layout(columns=names, wrapped=names))


def _find_pair(study: Study, first: str, second: str) -> tuple[StudyRun, StudyRun]:
    """Return the two runs; for two cells, their runs of the first seed that both have."""
    one, two = ([run for run in study.runs if run.cell == name] for name in (first, second))
    pairs = ((a, b) for a in one for b in two if a.seed == b.seed)
    return next(pairs, None) or (study.find_any(first), study.find_any(second))


def find_differences(first: StudyRun, second: StudyRun) -> list[tuple[str, str, str]]:
    """Return (what, value in the first, value in the second) for each difference."""
    rows = []
    for read in (lambda folder: run_files.read_json(folder / run_files.CONFIG), _read_provenance):
        one, two = (dotted.flatten(read(run.folder) or {}) for run in (first, second))
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) != two.get(key) and key not in IGNORED:
                rows.append((key, spell(one.get(key, "")), spell(two.get(key, ""))))
    return rows


def _read_provenance(folder: Path) -> dict[str, Any]:
    """Return provenance.json, plus the fingerprints of the data that a finished run was trained on."""
    record, summary = (run_files.read_json(folder / name) or {} for name in (run_files.PROVENANCE, run_files.SUMMARY))
    return {**record, **{name: summary[name] for name in INPUTS if name in summary}}
