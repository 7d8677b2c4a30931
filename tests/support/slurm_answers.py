"""Fake answers of Slurm about jobs, and a run that is queued there."""

from __future__ import annotations

from typing import Any

from ablatrix.orchestrator.slurm import commands, job_parsing
from ablatrix.orchestrator.status import run_state, study_state
from ablatrix.orchestrator.store import submit_attempts
from ablatrix.orchestrator.store.study_dir import Study, StudyRun
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.events import append_event

TOKEN = "0123456789abcdef"
Queue = dict[str, job_parsing.Job]


class Cluster:
    """Slurm's answers in a test: jobs in the queue, ended jobs, or none while it is down."""

    def __init__(self) -> None:
        self.waiting: Queue = {}
        self.ended: Queue = {}
        self.down = False

    def queue(self) -> Queue:
        if self.down:
            raise commands.ControllerError("squeue did not answer")
        return dict(self.waiting)

    def ended_jobs(self, ids: Any) -> Queue:
        wanted = set(ids)
        return {key: job for key, job in self.ended.items() if key in wanted}


def queue_run(run: StudyRun, job_id: str = "5_0") -> None:
    attempt = submit_attempts.newest(run.folder) + 1
    submit_attempts.take(run.folder, attempt)
    append_event(run.folder, "submitting", attempt=attempt, token=TOKEN)
    append_event(run.folder, "queued", launcher="sbatch", job_id=job_id, attempt=attempt, token=TOKEN)


def job(state: str, token: str = TOKEN, **fields: str) -> Queue:
    return {"5_0": job_parsing.Job("5_0", state, comment=job_parsing.comment(token), **fields)}


def now(study: Study) -> run_state.RunState:
    return study_state.collect(study)[0]


def write_rows(run: StudyRun, *steps: int) -> None:
    log = ",".join(loss_csv.COLUMNS) + "\n"
    (run.folder / run_files.LOSS).write_text(log + "".join(f"{s},2.5,0.5,,0.001,1.0,{s * 100},{s}\n" for s in steps))
