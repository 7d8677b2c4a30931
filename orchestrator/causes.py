"""Why a run ended without a word: what Slurm says of its job, else what the last lines of its log say."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from orchestrator import slurm
from trainer import runlog

TAIL_BYTES = 4096

BY_LOG = (
    (r"OutOfMemoryError|CUDA out of memory|MemoryError|[Oo]om[-_ ]kill|Out Of Memory", "out of memory"),
    (r"DUE TO TIME LIMIT", "time limit"),
    (r"DUE TO NODE FAILURE|NODE_FAIL", "node failure"),
    (r"DUE TO PREEMPTION", "preempted"),
    (r"No space left|Disk quota exceeded", "disk full or over quota"),
    (r"OfflineCacheError|warm-cache|cache_warm", "offline cache incomplete: run make warm-cache on the login node"),
)
BY_STATE = {
    "OUT_OF_MEMORY": "out of memory: ask for more in slurm.mem, or lower trainer.batch_size",
    "TIMEOUT": "time limit: raise slurm.time, or submit again to continue from the last checkpoint",
    "NODE_FAIL": "node failure: submit again to continue from the last checkpoint",
    "PREEMPTED": "preempted and not requeued: submit again to continue",
    "BOOT_FAIL": "node failure: submit again",
}


def likely(run_dir: Path, job: slurm.Job | None = None) -> str:
    """Why a run that left no end mark is gone: Slurm's verdict, else the last lines of its log."""
    tail = tail_text(run_dir / runlog.JOB_OUT)
    if job and job.state in BY_STATE:
        return BY_STATE[job.state]
    for pattern, cause in BY_LOG:
        if re.search(pattern, tail):
            return cause
    if job and job.exit_code == "0:53":
        return "Slurm could not open the job's log: its folder is missing or not writable on the node"
    if job and (job.exit_code.endswith(":9") or job.exit_code == "137:0"):
        return "killed (signal 9), probably out of memory"
    if not (run_dir / runlog.JOB_OUT).exists():
        return "the job ended before the trainer started" + (f" (Slurm says {job.state})" if job else "")
    ending = f"Slurm says {job.state}, exit code {job.exit_code}" if job else "the process is gone"
    return f"ended without a word ({ending})"


def of_exit(code: int, log: Path, whose: str = "") -> str:
    """Why a process ended with this code, a negative one for a signal; whose: before `killed by`."""
    if code < 0:
        likely_cause = ", probably out of memory" if code == -signal.SIGKILL else ""
        return f"{whose}killed by {signal.Signals(-code).name}{likely_cause}"
    return f"exit code {code}: {last_line(log)}"


def last_line(path: Path) -> str:
    """The last line of a log that says something, cut to fit into a sentence; `no output` for none."""
    lines = tail_text(path).strip().splitlines()
    return lines[-1][:200] if lines else "no output"


def tail_text(path: Path, size: int = TAIL_BYTES) -> str:
    """The last bytes of a file as text; '' where there is none."""
    try:
        with runlog.opened(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(2 * size).decode("utf-8", "replace")
    except OSError:
        return ""
