"""The verb `logs`: show what a run printed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.store import job_log, log_tail, study_dir
from ablatrix.orchestrator.terminal import interrupts, printing
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.files import open_for_reading
from ablatrix.trainer.rundir.program import program

if TYPE_CHECKING:
    from ablatrix.orchestrator.store.study_dir import StudyRun

PIECE = 1 << 20  # bytes of a log read at a time
LONGEST_LOG = 1 << 26  # bytes shown without --follow
LONGEST_TAIL = 1 << 22  # bytes searched for the requested lines
POLL_SECONDS = 1.0  # inotify does not see what another host writes
ASK_EVERY = 10  # polls without output between checks whether the run is still active, each of which calls squeue


def logs(run: str, study: str | None, output: Path, *, lines: int, keep_following: bool, as_json: bool = False) -> None:
    """Print the last lines of a run's log; with `keep_following`, all of it until the run ends."""
    if keep_following and as_json:
        raise UserError("logs: --follow and --json cannot be combined")
    found = study_dir.find_study(study, output)
    chosen = found.find_any(run)
    if as_json:
        text = printing.log_text(read_log(chosen, lines))
        printing.print_json({"run": chosen.id, "folder": str(chosen.folder), "lines": text.splitlines()})
        return
    if not keep_following:
        print(printing.log_text(read_log(chosen, lines)))
        return
    scheduler = Scheduler()
    with interrupts.explained("stopped following; the run continues"):
        for text in follow(chosen, lambda: not study_state.state_of(found, chosen, scheduler).active):
            print(printing.log_text(text), end="", flush=True)


def follow(run: StudyRun, ended: Callable[[], bool]) -> Iterator[str]:
    """Yield a run's job.out as it grows, until `ended()` and nothing more comes.

    If its job ended before the trainer started, yield the job's own log.
    """
    path, position, quiet = run.folder / run_files.JOB_OUT, 0, 0
    while True:
        over = quiet % ASK_EVERY == 0 and ended()  # checked before reading, so that the last lines are still read
        text, position = _read_from(path, position)
        quiet = 0 if text else quiet + 1
        if text:
            yield text
        elif over:
            log = job_log.of_unstarted(run.folder)
            if log:
                yield _label_job_log(log, log_tail.tail_text(log, LONGEST_LOG))
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


def read_log(run: StudyRun, lines: int) -> str:
    """Return the last lines (0: all) of a run's job.out, or of its job's own log if the trainer has not started.

    Raises UserError if neither exists yet.
    """
    log = job_log.of_unstarted(run.folder)
    path = log or run.folder / run_files.JOB_OUT
    if not path.exists():
        study = shlex.quote(str(run.folder.parent))
        raise UserError(f"{run.id}: no log yet ({path}); see: {program()} status {study}")
    kept = log_tail.tail_text(path, LONGEST_TAIL if lines else LONGEST_LOG).splitlines()
    text = "\n".join(kept[-lines:])
    return _label_job_log(path, text) if log else text


def _label_job_log(path: Path, text: str) -> str:
    return f"(the trainer has not started; this is the job's own log, {path})\n{text}"
