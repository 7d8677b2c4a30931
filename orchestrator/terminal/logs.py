"""Looking at single runs: the log, and what differs between two of them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.store import job_log as joblog
from ablatrix.orchestrator.store import log_tail
from ablatrix.orchestrator.store.study_dir import StudyRun
from ablatrix.orchestrator.study import dotted
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.rundir import recorded_inputs, run_files
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.files import open_for_reading
from ablatrix.trainer.rundir.program import program

PIECE = 1 << 20  # bytes of a log that are shown at once
LONGEST_LOG = 1 << 26  # bytes of it that are shown at all without --follow
LONGEST_TAIL = 1 << 22  # bytes in which the lines that were asked for are looked for
POLL_SECONDS = 1.0  # no inotify: it does not see what another host writes
ASK_EVERY = 10  # polls without news before it is asked whether the run lives: that costs a squeue
IGNORED = ("system.work_dir", "command", "submitted")


def follow(run: StudyRun, ended: Callable[[], bool]) -> Iterator[str]:
    """The text of a run's job.out as it grows, until `ended()` and nothing more comes.

    If its job ended before the trainer started: the job's own log.
    """
    path, position, quiet = run.folder / run_files.JOB_OUT, 0, 0
    while True:
        over = quiet % ASK_EVERY == 0 and ended()  # asked before reading: what is written in between is still read
        text, position = _read_from(path, position)
        quiet = 0 if text else quiet + 1
        if text:
            yield text
        elif over:
            job_log = joblog.of_unstarted(run.folder)
            if job_log:
                yield _from_job(job_log, log_tail.tail_text(job_log, LONGEST_LOG))
            return
        else:
            time.sleep(POLL_SECONDS)


def _read_from(path: Path, position: int) -> tuple[str, int]:
    try:
        with open_for_reading(path) as file:
            file.seek(position)
            content = file.read(PIECE)
    except OSError:
        return "", position
    return content.decode("utf-8", "replace"), position + len(content)


def log_text(run: StudyRun, lines: int) -> str:
    """The last lines of a run's job.out, or of its job's own log where the trainer has not started.

    Raises UserError where there is neither yet.
    """
    job_log = joblog.of_unstarted(run.folder)
    path = job_log or run.folder / run_files.JOB_OUT
    if not path.exists():
        study = shlex.quote(str(run.folder.parent))
        raise UserError(f"{run.id}: has no log yet ({path}); see: {program()} status {study}")
    size = log_tail.TAIL_BYTES if lines else LONGEST_LOG
    kept = log_tail.tail_text(path, size).splitlines()
    while len(kept) <= lines and size < min(path.stat().st_size, LONGEST_TAIL):
        size *= 8
        kept = log_tail.tail_text(path, size).splitlines()
    text = "\n".join(kept[-lines:])
    return _from_job(path, text) if job_log else text


def _from_job(path: Path, text: str) -> str:
    return f"(the trainer has not started; this is the job's own log, {path})\n{text}"


def differences(first: StudyRun, second: StudyRun) -> list[tuple[str, str, str]]:
    """(what, value in the first, value in the second) for configuration, data, code and environment."""
    rows = []
    for read in (_config, _provenance):
        one, two = (dotted.flatten(read(run.folder)) for run in (first, second))
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) != two.get(key) and key not in IGNORED:
                rows.append((key, spell(one.get(key, "")), spell(two.get(key, ""))))
    return rows


def _config(folder: Path) -> dict[str, Any]:
    return run_files.read_json(folder / run_files.CONFIG) or {}


def _provenance(folder: Path) -> dict[str, Any]:
    """provenance.json, and the fingerprints of what a finished run was trained on."""
    record, summary = (run_files.read_json(folder / name) or {} for name in (run_files.PROVENANCE, run_files.SUMMARY))
    names = (recorded_inputs.CORPUS, recorded_inputs.TOKENIZER, recorded_inputs.DATA)
    return {**record, **{name: summary[name] for name in names if name in summary}}
