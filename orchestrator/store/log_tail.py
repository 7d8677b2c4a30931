"""The end of a log, and descriptions of how a process ended."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from ablatrix.trainer.rundir.files import open_for_reading

TAIL_BYTES = 4096
ERRORS_WITHIN = 15  # last lines of a log, which are searched for an error
LONGEST_LINE = 160  # characters of a quoted line

# Colors, cursor movements and titles, as terminals read them (ECMA-48)
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]|\x9b[0-?]*[ -/]*[@-~]"
)
# Slurm's summary of how a job ended, printed below the cause
_SUMMARY = re.compile(
    r"srun: (error: \S+: tasks? |Job step aborted|Terminating|launch/)|slurmstepd: error: \*{3} STEP "
    r"|slurm\.setup ended the job"
)
_SETUP = re.compile(r"^slurm\.setup ended the job before its run started \((exit code [0-9]+)\)$", re.MULTILINE)
_SCRIPT = re.compile(r"^\S*/slurm_script: ")  # bash reports the script by the path of Slurm's copy
_ERROR = re.compile(
    r"error|not found|no such|cannot|can't|could not|unable|denied|unknown|failed|fatal|invalid|missing|killed", re.I
)


def tail_text(path: Path, size: int = TAIL_BYTES) -> str:
    """Return the last `size` bytes of a file as text; '' if it cannot be read."""
    try:
        with open_for_reading(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(2 * size).decode("utf-8", "replace")
    except OSError:
        return ""


def plain_lines(output: bytes) -> Iterator[str]:
    """Yield lines of output as a reader sees them: no colors, each state of a progress bar on its own line."""
    text = _ESCAPES.sub("", output.decode("utf-8", "replace").replace("\ufeff", "").replace("\0", ""))
    return (line for line in re.split(r"[\r\n\b]+", text) if line.strip())


def describe_exit(code: int, log: Path) -> str:
    """Return how a process ended: its exit code and the last line of its log, or the signal for a negative code."""
    if code < 0:
        return describe_signal(-code)
    lines = _tail_lines(log)
    return f"exit code {code}: {lines[-1][:200] if lines else 'no output'}"


def describe_signal(number: int) -> str:
    """Return a description such as `killed by SIGKILL, probably out of memory`."""
    likely_cause = ", probably out of memory" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name}{likely_cause}"


def quote_job_log(path: Path, study: Path) -> str:
    """Return the line of a job's log that explains its end, and the log's path within the study; '' if it is empty."""
    line, setup = _explaining_line(path), _SETUP.findall(tail_text(path))
    by = f"slurm.setup ended it with {setup[-1]}; " if setup else ""
    return f'"{line}" ({by}{path.relative_to(study)})' if line else ""


def _explaining_line(path: Path) -> str:
    """Return the last line of a log, preceded by the last error above it."""
    lines = [line[:LONGEST_LINE] for line in _tail_lines(path) if any(map(str.isalnum, line))]
    lines = [_SCRIPT.sub("", line) for line in lines if not _SUMMARY.match(line)] or lines
    errors = [line for line in lines[-ERRORS_WITHIN:] if _ERROR.search(line)]
    if errors and errors[-1] != lines[-1]:
        return f"{errors[-1]} ... {lines[-1]}"
    return lines[-1] if lines else ""


def _tail_lines(path: Path) -> list[str]:
    return [line.strip() for line in plain_lines(tail_text(path).encode("utf-8", "replace"))]
