"""Taking runs back: scancel for jobs, a signal for runs of this machine."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence

from orchestrator import slurm
from orchestrator.status import RunState
from trainer import runlog
from trainer.errors import UserError

SCANCEL_AT_ONCE = 200  # ids on one command line


def cancel(states: Sequence[RunState]) -> list[str]:
    """Cancel these runs (only active ones can be) and return the ids of those that were told to stop.

    Raises UserError for a run that runs on another machine without Slurm, ControllerError where scancel fails.
    """
    jobs = sorted({state.job_id for state in states if state.job_id})
    for start in range(0, len(jobs), SCANCEL_AT_ONCE):
        slurm.run_command(["scancel", *jobs[start : start + SCANCEL_AT_ONCE]])
    for state in states:
        if not state.job_id:
            _stop_process(state)
    return [state.run.id for state in states]


def _stop_process(state: RunState) -> None:
    """SIGTERM to the trainer of a local run: it writes a checkpoint and ends."""
    events = runlog.read_events(state.run.folder)
    started = next((e for e in reversed(events) if e["event"] in ("started", "resumed")), None)
    if started is None:
        raise UserError(f"{state.run.id}: waits in a local queue; stop that `submit` with Ctrl-C")
    if started.get("host") != socket.gethostname():
        raise UserError(f"{state.run.id}: runs on {started.get('host')} without Slurm; cancel it there")
    os.kill(int(started["pid"]), signal.SIGTERM)
