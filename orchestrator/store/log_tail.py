"""The end of a log, and the line in it that explains how a job or process ended."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from ablatrix.trainer.rundir.files import open_for_reading

# Colours, cursor movements and titles, as terminals read them (ECMA-48); backspaces of a progress bar
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]|\x9b[0-?]*[ -/]*[@-~]"
)


def plain_lines(raw: bytes) -> Iterator[str]:
    """The lines of some output as a reader sees them: no colours, each state of a progress bar on a line of its own."""
    text = _ESCAPES.sub("", raw.decode("utf-8", "replace").replace("\ufeff", "").replace("\0", ""))
    return (line for line in re.split(r"[\r\n\b]+", text) if line.strip())


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
        with open_for_reading(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(2 * size).decode("utf-8", "replace")
    except OSError:
        return ""
