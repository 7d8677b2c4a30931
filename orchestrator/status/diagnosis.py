"""Diagnose why a run ended without an end mark, from Slurm's verdict on its job, else from the end of its log."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.store.log_tail import describe_signal, quote_job_log, tail_text
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.program import program

if TYPE_CHECKING:
    from ablatrix.orchestrator.slurm import job_parsing

BY_LOG = (
    (r"OutOfMemoryError|CUDA out of memory|MemoryError|[Oo]om[-_ ]kill|Out Of Memory", "out of memory"),
    (r"DUE TO TIME LIMIT", "time limit"),
    (r"DUE TO NODE FAILURE|NODE_FAIL", "node failure"),
    (r"DUE TO PREEMPTION", "preempted"),
    (r"No space left|Disk quota exceeded", "disk full or over quota"),
    (
        r"OfflineCacheError|warm-cache|cache_warm",
        "offline cache incomplete: run `{program} warm-cache` on the login node",
    ),
)
BY_STATE = {
    "OUT_OF_MEMORY": "out of memory: request more in slurm.mem, or lower trainer.batch_size",
    "TIMEOUT": "time limit: raise slurm.time; submit --retry continues from the last checkpoint",
    "NODE_FAIL": "node failure: submit --retry continues from the last checkpoint",
    "PREEMPTED": "preempted and not requeued: submit --retry continues from the last checkpoint",
    "BOOT_FAIL": "node failure: submit --retry runs it again",
}


def describe_end(run_dir: Path, job: job_parsing.Job | None = None, job_log: Path | None = None) -> str:
    """Return why a run without an end mark ended.

    job: what Slurm knows about its job. job_log: the job's own log, if the trainer has not started.
    """
    log = job_log or run_dir / run_files.JOB_OUT
    if job and job.state in BY_STATE:
        return BY_STATE[job.state]
    tail = tail_text(log)
    for pattern, cause in BY_LOG:
        if re.search(pattern, tail):
            return cause.format(program=program())
    if job and job.exit_code == "0:53":
        return "Slurm could not open the job's log: its folder is missing or not writable on the node"
    if job and (job.exit_code.endswith(":9") or job.exit_code == "137:0"):
        return describe_signal(signal.SIGKILL)
    if job_log or not log.exists():
        quote = quote_job_log(job_log, run_dir.parent) if job_log else ""
        ending = f": {quote}" if quote else f" (Slurm says {job.state})" if job else ""
        return f"the job ended before the trainer started{ending}"
    ending = f"Slurm says {job.state}, exit code {job.exit_code}" if job else "process not found"
    return f"exited without reporting a reason ({ending})"


def generalize(reason: str) -> str:
    """Return a reason without numbers, paths and run names, so that failures of the same kind can be grouped."""
    return re.sub(r"\S*/\S*|\S*[0-9]\S*", "#", reason)
