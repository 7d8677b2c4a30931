"""Runs that did not finish: which error to show to the user, and which event to record. Torch-free."""

from __future__ import annotations

import traceback
from pathlib import Path

from ablatrix.trainer.distributed.rank_info import PeerLostError, describe_lost_peer, is_lost_peer
from ablatrix.trainer.out_of_memory import first_line, is_out_of_memory
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.attempts import Attempt, GoneError, SupersededError
from ablatrix.trainer.rundir.errors import AblatrixError, RunError
from ablatrix.trainer.rundir.events import note, read_events
from ablatrix.trainer.rundir.files import FULL, TRANSIENT
from ablatrix.trainer.signals import Interrupted


def explain(error: BaseException, run_dir: Path, attempt: Attempt | None, stopping: bool = False) -> BaseException:
    """Return the error to show to the user; for a superseded attempt, the error says that it was superseded.

    stopping: a signal was received, as by the other processes of the run, one of which may have exited first.
    """
    try:
        if attempt is not None:
            attempt.require()
    except (SupersededError, GoneError) as over:
        return over
    except OSError as failing:
        error = error if isinstance(error, OSError) else failing
    if is_lost_peer(error):
        return Interrupted() if stopping else describe_lost_peer(error)
    if isinstance(error, OSError) and error.errno is not None:
        return RunError(f"{error.filename or run_dir}: {_advice(error)}: {_describe_restart(run_dir)}")
    if is_out_of_memory(error):
        return RunError(
            f"out of memory ({first_line(error)}); give the job more memory (slurm.mem, a larger GPU) and start the "
            f"same command again: {_describe_restart(run_dir)}; or lower data.block_size or the model's size"
        )
    return error


def record(error: BaseException, run_dir: Path, attempt: Attempt | None, signal_name: str) -> None:
    """Record in events.jsonl how the run ended. Never raises OSError, which would hide the original error."""
    if isinstance(error, SupersededError):
        assert attempt is not None
        note(run_dir, "superseded", start=attempt.number)
    elif isinstance(error, GoneError):
        if (run_dir / run_files.EVENTS).exists():  # else the event would go to a new folder of this name
            note(run_dir, "failed", reason=str(error))
    elif isinstance(error, PeerLostError):
        if not _has_failed(run_dir):  # otherwise the other process, or the job's task, says why
            note(run_dir, "lost_peer", reason=str(error))
    elif isinstance(error, AblatrixError):
        note(run_dir, "failed", reason=str(error))
    elif isinstance(error, Exception):
        note(run_dir, "failed", reason=traceback.format_exception_only(error)[-1].strip())
    else:
        note(run_dir, "signal", signal=signal_name)
        note(run_dir, "stopped")


def _has_failed(run_dir: Path) -> bool:
    events = read_events(run_dir)
    return bool(events) and events[-1]["event"] == "failed"


def _advice(error: OSError) -> str:
    if error.errno in FULL:
        return (
            f"write failed ({error.strerror}): disk full or over quota; free some space there (df and quota "
            "show how much is left), then rerun the command"
        )
    if error.errno in TRANSIENT:
        return f"the file system kept failing ({error.strerror}); rerun the command when it is back"
    return f"{error.strerror}; correct this and rerun the command"


def _describe_restart(run_dir: Path) -> str:
    try:
        names = sorted(path.name for path in run_dir.glob("checkpoint-*.pt"))
    except OSError:  # the file system is what failed
        names = []
    return f"it continues from {names[-1]}" if names else "there is no checkpoint yet, so it starts from the beginning"
