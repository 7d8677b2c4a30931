"""Find a submission's job in Slurm's queue by its token, whatever number sbatch has printed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from ablatrix.orchestrator.slurm import commands, job_parsing

LOOKS = (0.0, 2.0, 5.0)  # seconds between looks into the queue for a job whose answer was lost


class AmbiguousAnswerError(commands.NoAnswerError):
    """sbatch printed several numbers, and the queue does not show which of them is the job."""


def identify(token: str, candidates: Sequence[str]) -> str:
    """Return the base id of the job with this token.

    If the queue does not show it (no answer, or a site that removes every mark), it is the only number that sbatch
    printed; status looks for the token again. Raises AmbiguousAnswerError for several numbers.
    """
    found = find_job(token, LOOKS if len(candidates) > 1 else LOOKS[:1], candidates)
    if not found and len(candidates) > 1:
        raise AmbiguousAnswerError(f"sbatch printed several numbers ({', '.join(candidates)})")
    return found or candidates[0]


def find_job(token: str, looks: Sequence[float], candidates: Sequence[str] = ()) -> str:
    """Return the base id of the job with this token, '' for none, looking once after each of these pauses (seconds)."""
    for pause in looks:
        time.sleep(pause)
        with contextlib.suppress(commands.ControllerError):
            jobs = [job for job in commands.queue().values() if job.token == token and job.base.isdigit()]
            if jobs:
                return _cancel_twins(sorted(jobs, key=lambda job: int(job.base)), candidates)
    return ""


def _cancel_twins(jobs: Sequence[job_parsing.Job], candidates: Sequence[str]) -> str:
    """Keep one of the jobs with one token, which a repeated request may have queued twice, and return its base id.

    Only waiting jobs are cancelled: a running one may have claimed the runs, and the other then leaves by itself.
    """
    bases = list(dict.fromkeys(job.base for job in jobs))
    kept = next((base for base in candidates if base in bases), bases[0])
    twins = {job.base for job in jobs if job.base != kept and job.state in job_parsing.PENDING}
    twins -= {job.base for job in jobs if job.state in job_parsing.RUNNING}
    if twins:
        with contextlib.suppress(commands.ControllerError):  # one that stays finds its runs taken when it starts
            commands.cancel(twins)
    return kept
