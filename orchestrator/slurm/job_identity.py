"""Find a submission's job in Slurm's queue by its token, whatever number sbatch printed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from ablatrix.orchestrator.slurm import commands, job_parsing

LOOKS = (0.0, 2.0, 5.0)  # seconds before each query of the queue for a job whose answer was lost


class AmbiguousAnswerError(commands.NoAnswerError):
    """sbatch printed several numbers, and the queue does not show which of them is the job."""


def identify(token: str, candidates: Sequence[str]) -> str:
    """Return the base id of the job with this token.

    If the queue does not show the job (no answer, or a site that removes every mark), return the number that sbatch
    printed; status looks for the token again. Raises AmbiguousAnswerError if sbatch printed several numbers.
    """
    found = find_job(token, LOOKS if len(candidates) > 1 else LOOKS[:1], candidates)
    if not found and len(candidates) > 1:
        raise AmbiguousAnswerError(f"sbatch printed several numbers ({', '.join(candidates)})")
    return found or candidates[0]


def find_job(token: str, looks: Sequence[float], candidates: Sequence[str] = ()) -> str:
    """Return the base id of the job with this token, '' for none, querying the queue after each pause (seconds)."""
    for pause in looks:
        time.sleep(pause)
        with contextlib.suppress(commands.ControllerError):
            jobs = [job for job in commands.queue(token=token).values() if job.base.isdigit()]
            if jobs:
                return _cancel_twins(sorted(jobs, key=lambda job: int(job.base)), candidates)
    return ""


def _cancel_twins(jobs: Sequence[job_parsing.Job], candidates: Sequence[str]) -> str:
    """Keep one of several jobs with the same token, left by a repeated request, and return its base id.

    Only waiting jobs are cancelled: a running one may have claimed the runs, and the other then exits by itself.
    """
    bases = list(dict.fromkeys(job.base for job in jobs))
    kept = next((base for base in candidates if base in bases), bases[0])
    twins = {job.base for job in jobs if job.base != kept and job.state in job_parsing.PENDING}
    twins -= {job.base for job in jobs if job.state in job_parsing.RUNNING}
    if twins:
        with contextlib.suppress(commands.ControllerError):  # a remaining twin finds its runs taken when it starts
            commands.cancel(twins)
    return kept
