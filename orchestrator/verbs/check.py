"""The verb `check`: find what would fail, before anything is queued."""

from __future__ import annotations

from collections.abc import Sequence

from ablatrix.orchestrator.slurm import site_limits
from ablatrix.orchestrator.study import json_schema
from ablatrix.orchestrator.terminal import printing
from ablatrix.orchestrator.verbs.plan import Options, Plan, check_plan, make_plan
from ablatrix.orchestrator.verbs.schema import renewal_command
from ablatrix.trainer.rundir.console import count, say

SHOWN = 10  # seeds listed


def check(options: Options, as_json: bool = False) -> None:
    """Run every check of `submit` and print the outcome. Raises UserError with all findings."""
    planned = make_plan(options)
    corpora = check_plan(planned)
    runs = planned.runs
    cells, seeds = list(dict.fromkeys(run.cell for run in runs)), list(dict.fromkeys(run.seed for run in runs))
    notes = _find_notes(planned)
    if as_json:
        head = {"file": str(options.file), "folder": str(planned.folder), "launcher": planned.launcher}
        printing.print_json(
            {**head, "runs": len(runs), "cells": cells, "seeds": seeds, "corpora": corpora, "notes": notes}
        )
        return
    sizes = len({run.size for run in runs})
    at_sizes = f", {len(cells) // sizes} at each of {sizes} sizes" if sizes > 1 else ""
    shown = ", ".join(map(str, seeds[:SHOWN])) + (f", ... {seeds[-1]}" if seeds[SHOWN:] else "")
    print(
        f"{options.file}: {count(len(runs), 'run')} (cells: {len(cells)}{at_sizes}; seeds: {shown}), "
        f"{_describe_outcome(corpora)} ({planned.launcher})"
    )
    for line in corpora:
        say(line)
    for note in notes:
        print(f"note: {note}")


def _describe_outcome(lines: Sequence[str]) -> str:
    """Return the outcome of a check that found no error. lines: the lines printed below it."""
    warnings = [line for line in lines if line.startswith("warning: ")]
    return f"no errors, {count(len(warnings), 'warning')}" if warnings else "no problems found"


def _find_notes(planned: Plan) -> list[str]:
    """Return notes on things that are worth knowing but not wrong."""
    old = json_schema.outdated(planned.loaded.source.path)
    renew = f"{old} is from another version, so editors may err; renew it with: {renewal_command(old)}" if old else ""
    return [note for note in (_describe_waves(planned), renew) if note]


def _describe_waves(planned: Plan) -> str:
    """Return a sentence if the site's limits allow only part of the study to be queued at once, else ''."""
    if planned.launcher == "local":
        return ""
    settings = planned.loaded.experiment.slurm
    room, jobs = site_limits.find_room(settings), -(-len(planned.runs) // settings.runs_per_job)
    if room.jobs is None or room.jobs > jobs:
        return ""
    fits = max(0, room.jobs - 1)  # one place is reserved for the follow-up job
    return f"{fits} of its {count(jobs, 'job')} can be queued now ({room.reason}); the rest follows in waves"
