"""The log of a job: the output of the shell, Slurm and the job's task, before a trainer writes to job.out."""

from __future__ import annotations

from pathlib import Path

from ablatrix.orchestrator.store import submit_attempts
from ablatrix.orchestrator.store.study_dir import LOGS
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import read_events


def find(run_dir: Path) -> Path | None:
    """Return the log of the newest job of a run, None if there is none."""
    queued = next((e for e in reversed(read_events(run_dir)) if e["event"] == "queued"), None) or {}
    return find_of_job(run_dir, str(queued.get("job_id") or ""), str(queued.get("token") or ""))


def find_of_job(run_dir: Path, job_id: str, token: str = "") -> Path | None:
    """Return the log of a Slurm job, or of a local submission if there is no job id; None if it does not exist."""
    logs = run_dir.parent / LOGS
    if job_id:
        # submitit has one log folder per submission
        candidates = [logs / f"{job_id}.out", *logs.glob(f"submitit/*/{job_id}/{job_id}_0_log.out")]
    else:
        candidates = [logs / f"{token}.out"] if token else []
    return next((path for path in candidates if path.is_file()), None)


def of_unstarted(run_dir: Path, job_id: str = "") -> Path | None:
    """Return the job's log if the run's newest attempt has not reached the trainer, else None.

    job_id: the id of the job, if known; by default taken from the run's events.
    """
    attempt = submit_attempts.newest(run_dir)
    if (attempt and not submit_attempts.has_started(run_dir, attempt)) or not (run_dir / run_files.JOB_OUT).exists():
        return find_of_job(run_dir, job_id) if job_id else find(run_dir)
    return None
