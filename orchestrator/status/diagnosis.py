"""Why a run ended without a word: what Slurm says of its job, else what the last lines of its log say."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

from ablatrix.orchestrator.job.metric_sources import plain_lines
from ablatrix.orchestrator.slurm import commands
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.program import program

TAIL_BYTES = 4096

# Slurm's summary of an end, printed below the cause
_SUMMARY = re.compile(
    r"srun: (error: \S+: tasks? |Job step aborted|Terminating|launch/)|slurmstepd: error: \*{3} STEP "
    r"|slurm\.setup ended the job"
)
_SETUP = re.compile(r"^slurm\.setup ended the job before its run started \((exit code [0-9]+)\)$", re.MULTILINE)
_SCRIPT = re.compile(r"^\S*/slurm_script: ")  # bash names the script by the place of Slurm's copy
_ERROR = re.compile(
    r"error|not found|no such|cannot|can't|could not|unable|denied|unknown|failed|fatal|invalid|missing|killed", re.I
)
ERRORS_WITHIN = 15  # lines from the end in which an error is looked for
LONGEST_LINE = 160

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
    "OUT_OF_MEMORY": "out of memory: ask for more in slurm.mem, or lower trainer.batch_size",
    "TIMEOUT": "time limit: raise slurm.time; submit --retry continues from the last checkpoint",
    "NODE_FAIL": "node failure: submit --retry continues from the last checkpoint",
    "PREEMPTED": "preempted and not requeued: submit --retry continues from the last checkpoint",
    "BOOT_FAIL": "node failure: submit --retry runs it again",
}


def likely(run_dir: Path, job: commands.Job | None = None, job_log: Path | None = None) -> str:
    """Return why a run that left no end mark is gone: Slurm's verdict, else what its log says.

    job_log: the job's own log, where the trainer has not started.
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
        return "killed (signal 9), probably out of memory"
    if job_log or not log.exists():
        words = describe_log(job_log, run_dir.parent) if job_log else ""
        ending = f": {words}" if words else f" (Slurm says {job.state})" if job else ""
        return f"the job ended before the trainer started{ending}"
    ending = f"Slurm says {job.state}, exit code {job.exit_code}" if job else "the process is gone"
    return f"ended without a word ({ending})"


def quote_log(path: Path) -> str:
    """Return the last line of a log that explains something, after the last error above it if that is another one."""
    lines = [line[:LONGEST_LINE] for line in _tail_lines(path) if any(map(str.isalnum, line))]
    lines = [_SCRIPT.sub("", line) for line in lines if not _SUMMARY.match(line)] or lines
    if not lines:
        return ""
    errors = [line for line in lines[-ERRORS_WITHIN:] if _ERROR.search(line)]
    if errors and errors[-1] != lines[-1]:
        return f"{errors[-1]} ... {lines[-1]}"
    return lines[-1]


def describe_log(path: Path, study: Path) -> str:
    """Return the quoted line and the log's place in the study's folder; '' for a log without a word."""
    words, setup = quote_log(path), _SETUP.findall(tail_text(path))
    by = f"slurm.setup ended it with {setup[-1]}; " if setup else ""
    return f'"{words}" ({by}{path.relative_to(study)})' if words else ""


def of_exit(code: int, log: Path, whose: str = "") -> str:
    """Why a process ended with this code, a negative one for a signal; whose: before `killed by`."""
    if code < 0:
        likely_cause = ", probably out of memory" if code == -signal.SIGKILL else ""
        return f"{whose}killed by {signal.Signals(-code).name}{likely_cause}"
    return f"exit code {code}: {last_line(log)}"


def last_line(path: Path) -> str:
    """The last line of a log that says something, cut to fit into a sentence; `no output` for none."""
    lines = _tail_lines(path)
    return lines[-1][:200] if lines else "no output"


def _tail_lines(path: Path) -> list[str]:
    return [line.strip() for line in plain_lines(tail_text(path).encode("utf-8", "replace"))]


def tail_text(path: Path, size: int = TAIL_BYTES) -> str:
    """The last bytes of a file as text; '' where there is none."""
    try:
        with run_files.opened(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(2 * size).decode("utf-8", "replace")
    except OSError:
        return ""
