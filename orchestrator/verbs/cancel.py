"""The verb `cancel`: remove runs from the queue or stop them, with scancel for jobs and a signal for local runs."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ablatrix.orchestrator.slurm import commands, helper_jobs
from ablatrix.orchestrator.status import run_evidence, study_state
from ablatrix.orchestrator.store import study_dir, submit_attempts
from ablatrix.orchestrator.submit import wave_order
from ablatrix.orchestrator.terminal import printing
from ablatrix.trainer.rundir.console import count, visible
from ablatrix.trainer.rundir.errors import RunError, UserError
from ablatrix.trainer.rundir.events import note

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.store.study_dir import Study

SHOWN = 8  # runs listed in the question


def cancel(
    names: Sequence[str], study: str | None, output: Path, *, everything: bool, yes: bool, as_json: bool = False
) -> None:
    """Cancel the named runs or, with `everything`, all runs of a study and its helper jobs; ask first unless `yes`."""
    if bool(names) == everything:
        raise UserError("cancel: give runs, or --all")
    if as_json and not yes:
        raise UserError("cancel: --json cannot ask for confirmation; add --yes")
    found = study_dir.find_study(study, output)
    wanted = None if everything else {run.id for name in names for run in found.matching(name)}
    states = find_affected(study_state.collect(found), wanted)
    helpers = _find_helper_jobs(found) if everything else []
    if not states and not helpers and not wave_order.is_waiting(found, wanted):
        if as_json:
            printing.print_json({"study": found.name, "cancelled": [], "jobs": [], "no_longer_waiting": 0})
        else:
            print("nothing to cancel: none of these runs is queued or running")
        return
    if not yes:
        shown = ", ".join([state.run.id for state in states[:SHOWN]] + [f"job {job}" for job in helpers])
        typer.confirm(visible(f"cancel {count(len(states), 'run')} of {found.folder}: {shown}?"), abort=True)
    # helper jobs first, or they would queue what is being cancelled
    jobs = helper_jobs.cancel(found, running=True) if helpers else []
    forgotten = wave_order.forget(found, wanted)
    cancelled = cancel_runs(states)
    if as_json:
        printing.print_json({"study": found.name, "cancelled": cancelled, "jobs": jobs, "no_longer_waiting": forgotten})
        return
    if helpers:
        print(f"cancelled {', '.join(f'job {job}' for job in jobs) or 'no helper job'}")
    if forgotten:
        print(f"no longer waiting for room in the queue: {count(forgotten, 'run')}")
    print(f"cancelled {count(len(cancelled), 'run')}")


def find_affected(states: Sequence[RunState], wanted: Collection[str] | None) -> list[RunState]:
    """Return the active runs among the wanted ones (ids; None: all), and active runs that share a job with them."""
    chosen = [state for state in states if state.active and (wanted is None or state.run.id in wanted)]
    jobs = {state.job_id for state in chosen if state.job_id}
    return [state for state in states if state.active and (state in chosen or state.job_id in jobs)]


def cancel_runs(states: Sequence[RunState]) -> list[str]:
    """Cancel these active runs and return their ids.

    Raises UserError or RunError, before anything is cancelled, for a run that cannot be cancelled from here;
    ControllerError if scancel fails.
    """
    _require_confirmed(states)
    processes = {_find_process(state) for state in states if not state.job_id}
    commands.cancel({state.job_id for state in states if state.job_id})
    for state in states:
        if state.job_id:
            submit_attempts.mark_cancelled(state.run.folder, state.attempt)
        if state.job_id and (state.state == "queued" or state.requeued):  # Slurm may keep no trace of it
            fields = {"state": "cancelled", "reason": "cancelled while it waited", "slurm": "CANCELLED"}
            note(state.run.folder, "ended", **fields)
    for pid in processes:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
        except PermissionError:
            raise UserError(f"process {pid} belongs to another user; only that user can cancel its runs") from None
    return [state.run.id for state in states]


def _find_helper_jobs(study: Study) -> list[str]:
    """Return the ids of the study's report and follow-up jobs; none if Slurm does not answer."""
    if not commands.available():
        return []
    try:
        jobs = commands.queue()
    except commands.ControllerError:
        return []
    return [job for kind in (helper_jobs.FOLLOW_UP, helper_jobs.REPORT) for job in helper_jobs.find(study, kind, jobs)]


def _require_confirmed(states: Sequence[RunState]) -> None:
    """Raise RunError for a run whose job id may be another job's."""
    unsure = [state for state in states if state.job_id and not state.confirmed]
    if unsure:
        jobs = " ".join(sorted({state.job_id for state in unsure}))
        raise RunError(
            f"{unsure[0].run.id}: Slurm's queue does not show that job {unsure[0].job_id} is this run's (no answer, or "
            "a site that replaces comments); nothing was cancelled. Compare `scontrol show job`, then run: scancel "
            f"{jobs}"
        )


def _find_process(state: RunState) -> int:
    """Return the process to signal: a run's trainer, or the `submit` that a waiting run is queued in."""
    event = run_evidence.find_owner(state.run)
    if event is None:
        raise UserError(f"{state.run.id} is being submitted, and its process or job is not known yet; try again later")
    if not run_evidence.is_here(event) and event.get("host") != socket.gethostname():
        raise UserError(f"{state.run.id} runs on {event.get('host')} without Slurm; cancel it there")
    return int(event["pid"])
