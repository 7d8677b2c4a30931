"""The state of one run: queued, running, done, lost ..., with its reason and progress."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ablatrix.orchestrator.status import device_hours
from ablatrix.trainer.rundir import run_files

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.device_hours import Hours, Use
    from ablatrix.orchestrator.store.study_dir import StudyRun

STATES = ("planned", "queued", "running", "stopped", "done", "failed", "lost", "cancelled")
ACTIVE = ("queued", "running")


@dataclass(frozen=True)
class RunState:
    """The current state of one run."""

    run: StudyRun
    state: str = "planned"
    reason: str = ""
    iter: int = 0
    max_iters: int = 0
    loss: float | None = None
    val_loss: float | None = None
    compared: float | None = None  # newest value of the compared metric, if it is not a loss
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    node: str = ""
    job_id: str = ""
    job: Literal["", "gone", "unknown"] = ""  # gone: not in Slurm's queue; unknown: Slurm does not answer
    confirmed: bool = False  # True if the queue shows our token on this job, or the trainer recorded its id
    attempt: int = 0  # newest submit attempt
    unrecorded: bool = False  # True if the job is known, but not from an event of the submit that queued it
    requeued: bool = False  # True if stopped and in the queue again
    missing: tuple[str, ...] = ()  # files of the finished run that have been removed
    altered: str = ""  # how loss.csv differs from what the run wrote
    uses: tuple[Use, ...] = ()  # of GPUs or cores, one per attempt

    @property
    def active(self) -> bool:
        """True while queued, running, or due to be requeued automatically."""
        return self.state in ACTIVE or self.requeued

    @property
    def incomplete(self) -> bool:
        """True if a finished run has lost or changed results that the report needs."""
        return run_files.LOSS in self.missing or bool(self.altered)


def reasons(states: Sequence[RunState]) -> dict[str, tuple[str, str]]:
    """Return run id -> (state, reason)."""
    return {state.run.id: (state.state, state.reason) for state in states}


def total_hours(states: Sequence[RunState]) -> Hours:
    """Return the GPU-hours or CPU-hours of all attempts so far."""
    return device_hours.total([use for state in states for use in state.uses])


def as_record(states: Sequence[RunState], silent_since: float | None) -> dict[str, Any]:
    """Return the states as JSON objects for scripts; numbers that JSON cannot represent (NaN, infinity) become None.

    silent_since: Unix time at which the controller stopped answering.
    """
    names = ("reason", "iter", "max_iters", "loss", "val_loss", "compared", "tokens_per_s", "seconds_left")
    runs: list[dict[str, Any]] = [
        {
            **{name: getattr(state.run, name) for name in ("id", "cell", "seed")},
            "state": state.state,
            "requeued": state.requeued,
            **{name: getattr(state, name) for name in (*names, "node", "job_id", "attempt", "missing")},
            "folder": str(state.run.folder),
        }
        for state in states
    ]
    runs = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in run.items()} for run in runs]
    hours = total_hours(states)
    head = {"controller_silent_since": silent_since, "gpu_hours": hours.gpu, "cpu_hours": hours.cpu}
    return {**head, "runs": runs}
