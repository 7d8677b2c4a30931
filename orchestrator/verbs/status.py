"""The verb `status`: show the state of each run, from its files first, then from the scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import next_stage
from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import removed_files, run_state, study_state
from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.submit import early_failures, wave_order, waves
from ablatrix.orchestrator.terminal import interrupts, live, printing, status_table
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from ablatrix.orchestrator.report.stages import Stages
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.store.study_dir import Study


def status(study: str | None, output: Path, console: Console, *, watch: bool, as_json: bool, everything: bool) -> None:
    """Show the state of each run of a study: once, as JSON, or until Ctrl-C."""
    if watch and as_json:
        raise UserError("status: --watch and --json cannot be combined; call status --json repeatedly")
    found = study_dir.find_study(study, output)
    if watch:
        with interrupts.explained("stopped watching; the runs continue"):
            live.watch(found, console)
        return
    scheduler = Scheduler()
    states, stages = read_states(found, scheduler)
    if as_json:
        head = {"study": found.name, "folder": str(found.folder), "stages": list(stages.lines)}
        printing.print_json({**head, **run_state.as_record(states, scheduler.silent_since)})
        return
    order = wave_order.read(found)
    if scheduler.jobs is None and order and (order.runs or order.staged):
        # no run is queued, but a follow-up job may be queued
        study_state.read_queue(found, scheduler)
    status_table.print_states(states, str(found.folder), console, found.measure, everything)
    for line in (
        status_table.summary_line(states, scheduler),
        *waves.describe(found, order, states, scheduler.jobs, stages),
        *removed_files.of_study(found),
        early_failures.describe_alike(states, found.folder),
    ):
        if line:
            console.print(line, soft_wrap=True, highlight=False)


def read_states(study: Study, scheduler: Scheduler) -> tuple[list[RunState], Stages]:
    """Return the state of each run, with the reason if its stage holds it back, and the stages."""
    states = study_state.collect(study, scheduler)
    stages = next_stage.find_stages(study, states)
    return next_stage.with_reasons(states, stages), stages
