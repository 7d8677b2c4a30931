"""Taking runs back: scancel for jobs, a signal for runs of this machine."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Collection, Sequence

from orchestrator import slurm, status
from orchestrator.status import RunState
from trainer.errors import UserError

SCANCEL_AT_ONCE = 200  # ids on one command line


def affected(states: Sequence[RunState], wanted: Collection[str] | None) -> list[RunState]:
    """The active runs among those wanted (ids; None: all), and those that share a job with them."""
    chosen = [state for state in states if state.active and (wanted is None or state.run.id in wanted)]
    jobs = {state.job_id for state in chosen if state.job_id}
    return [state for state in states if state.active and (state in chosen or state.job_id in jobs)]


def cancel(states: Sequence[RunState]) -> list[str]:
    """Cancel these active runs and return their ids.

    Raises UserError, before anything is cancelled, for a run that cannot be cancelled from here; ControllerError where
    scancel fails.
    """
    processes = {_process(state) for state in states if not state.job_id}
    jobs = sorted({state.job_id for state in states if state.job_id})
    for start in range(0, len(jobs), SCANCEL_AT_ONCE):
        slurm.run_command(["scancel", *jobs[start : start + SCANCEL_AT_ONCE]])
    for pid in processes:
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            continue
        except PermissionError:
            raise UserError(f"process {pid} is another user's; only that user can cancel its runs") from None
    return [state.run.id for state in states]


def _process(state: RunState) -> int:
    """Whom to tell: the trainer of a run, or for one that still waits the `submit` that holds its queue."""
    event = status.owner(state.run)
    if event is None:
        raise UserError(f"{state.run.id}: nobody is known to run it")
    if event.get("host") != socket.gethostname():
        raise UserError(f"{state.run.id}: runs on {event.get('host')} without Slurm; cancel it there")
    return int(event["pid"])
