"""Taking runs back: scancel for jobs, a signal for runs of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Collection, Sequence

from ablatrix.orchestrator.slurm import commands, helper_jobs
from ablatrix.orchestrator.status import run_evidence
from ablatrix.orchestrator.status.run_state import RunState
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.trainer.rundir.errors import RunError, UserError
from ablatrix.trainer.rundir.events import append_event


def affected(states: Sequence[RunState], wanted: Collection[str] | None) -> list[RunState]:
    """The active runs among those wanted (ids; None: all), and those that share a job with them."""
    chosen = [state for state in states if state.active and (wanted is None or state.run.id in wanted)]
    jobs = {state.job_id for state in chosen if state.job_id}
    return [state for state in states if state.active and (state in chosen or state.job_id in jobs)]


def cancel(states: Sequence[RunState]) -> list[str]:
    """Cancel these active runs and return their ids.

    Raises UserError or RunError, before anything is cancelled, for a run that cannot be cancelled from here;
    ControllerError where scancel fails.
    """
    _require_confirmed(states)
    processes = {_process(state) for state in states if not state.job_id}
    commands.cancel({state.job_id for state in states if state.job_id})
    for state in states:
        if state.job_id and (state.state == "queued" or state.requeued):  # it leaves no other trace in some queues
            with contextlib.suppress(OSError):
                fields = {"state": "cancelled", "reason": "cancelled while it waited", "slurm": "CANCELLED"}
                append_event(state.run.folder, "ended", **fields)
    for pid in processes:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
        except PermissionError:
            raise UserError(f"process {pid} is another user's; only that user can cancel its runs") from None
    return [state.run.id for state in states]


def helper_job_ids(study: Study) -> list[str]:
    """Ids of the study's report and follow-up jobs; none where Slurm does not answer."""
    if not commands.available():
        return []
    try:
        jobs = commands.queue()
    except commands.ControllerError:
        return []
    return [job for kind in (helper_jobs.FOLLOW_UP, helper_jobs.REPORT) for job in helper_jobs.find(study, kind, jobs)]


def cancel_helpers(study: Study) -> str:
    """Cancel the study's report and follow-up jobs; which ones, in words. Raises ControllerError."""
    return ", ".join(f"job {job}" for job in helper_jobs.cancel(study, running=True)) or "no helper job"


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


def _process(state: RunState) -> int:
    """Whom to tell: the trainer of a run, or for one that still waits the `submit` that holds its queue."""
    event = run_evidence.find_owner(state.run)
    if event is None:
        raise UserError(f"{state.run.id}: is being submitted, its process or job is not known yet; try again later")
    if not run_evidence.is_here(event) and event.get("host") != socket.gethostname():
        raise UserError(f"{state.run.id}: runs on {event.get('host')} without Slurm; cancel it there")
    return int(event["pid"])
