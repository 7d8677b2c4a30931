"""Attempts at queueing a run, each claimed by one submit (see trainer/rundir/claims.py).

`<run>/.queue/<attempt>/` belongs to the submit that created it. Its `claim.json` contains the run's index in the array
and the token in the job's comment, by which a job is found again if sbatch's answer was lost. `job` contains the id of
the job that runs the attempt: a second job of the same submission finds it taken and exits. `cancelled` exists if
`ablatrix cancel` has ended the attempt.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from ablatrix.orchestrator.store import shared_fs
from ablatrix.orchestrator.study import env_settings
from ablatrix.trainer.rundir import claims, run_files
from ablatrix.trainer.rundir.files import atomic_write, create, make_folder
from ablatrix.trainer.rundir.owners import owner_name

FOLDER = run_files.QUEUE
# Seconds after which a claim without a known job is void; by then every sbatch has answered or timed out
VOID_AFTER = env_settings.seconds("ABLATRIX_CLAIM_SECONDS", 180.0)

FOLLOW_SECONDS = 300.0  # within which a job's first node must have started


@dataclass(frozen=True)
class Claim:
    """One attempt at queueing a run."""

    attempt: int
    token: str = ""
    index: int = 0  # the run's position in the submission's array
    tasks: int = 1  # size of that array; 1: a plain job


def new_token() -> str:
    """Return 64 random bits as hex, which identify one sbatch call."""
    return secrets.token_hex(8)


def newest(run_dir: Path) -> int:
    """Return the number of the newest attempt, 0 if there is none. Raises OSError."""
    return claims.newest(f"{run_dir}/{FOLDER}")


def take(run_dir: Path, attempt: int) -> bool:
    """Claim this attempt; return False if another submit has it. Raises OSError if the folder cannot be written."""
    return claims.take(f"{run_dir}/{FOLDER}", attempt)


def describe(run_dir: Path, claim: Claim) -> None:
    """Write claim.json, before the job is submitted."""
    by = f"on {socket.gethostname()}, process {os.getpid()},"
    text = json.dumps({**vars(claim), "by": by})
    atomic_write(f"{run_dir}/{FOLDER}/{claim.attempt}/claim.json", text, durable=False)


def read(run_dir: Path, attempt: int) -> Claim:
    """Return a claim, of which only the number is known until its owner has described it."""
    record = run_files.read_json(f"{run_dir}/{FOLDER}/{attempt}/claim.json") or {}
    token, index, tasks = (record.get(name) for name in ("token", "index", "tasks"))
    if not isinstance(token, str) or not all(type(n) is int and 0 <= n < 2**32 for n in (index, tasks)):
        return Claim(attempt)
    return Claim(attempt, token, index, tasks)  # type: ignore[arg-type]


def describe_owner(run_dir: Path, attempt: int) -> str:
    """Return who claimed this attempt, where and when, as far as known."""
    folder = run_dir / FOLDER / str(attempt)
    record = run_files.read_json(folder / "claim.json") or {}
    words = [owner_name(folder), str(record.get("by", ""))]
    with contextlib.suppress(OSError):
        words.append(time.strftime("at %H:%M:%S", time.localtime(folder.stat().st_mtime)))
    return " ".join(filter(None, words))


def is_void(run_dir: Path, attempt: int) -> bool:
    """True if this claim is so old that its sbatch must have ended, by the file server's clock."""
    try:
        return shared_fs.age(run_dir / FOLDER / str(attempt), run_dir / FOLDER) > VOID_AFTER
    except FileNotFoundError:  # removed in the meantime
        return True


def start(run_dir: Path, attempt: int, job_id: str) -> str | None:
    """Start an attempt in its job; return None if the job may run it, else why not.

    A requeued job finds its own id and continues; a second job of the same attempt, or a job whose attempt was given
    up, must exit. Raises OSError if the folder cannot be written.
    """
    superseded = _superseded(run_dir, attempt)
    if superseded:
        return superseded
    path = run_dir / FOLDER / str(attempt) / "job"
    make_folder(run_dir, parents=True)
    make_folder(run_dir / FOLDER)
    make_folder(path.parent)
    temporary = path.with_name(f".job.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        create(temporary, job_id)
        os.link(temporary, path)  # one winner, as with mkdir, but with a complete file
    except FileExistsError:
        return _other_owner(run_files.read_text(path), attempt, job_id)
    finally:
        temporary.unlink(missing_ok=True)
    return None


def _superseded(run_dir: Path, attempt: int) -> str:
    """Return a sentence if there is a newer attempt, else ''."""
    newer = newest(run_dir)  # lists the folder, which makes an NFS client query the server
    return f"attempt {attempt} was given up; attempt {newer} has taken its place" if newer > attempt else ""


def _other_owner(owner: str, attempt: int, job_id: str) -> str | None:
    return None if owner == job_id else f"job {owner} runs attempt {attempt} already"


def follow(run_dir: Path, attempt: int, job_id: str, seconds: float = FOLLOW_SECONDS) -> str | None:
    """Like `start`, on the job's other nodes: wait until its first node has started the attempt."""
    deadline = time.monotonic() + seconds
    while True:
        superseded = _superseded(run_dir, attempt)
        if superseded:
            return superseded
        owner = run_files.read_text(run_dir / FOLDER / str(attempt) / "job")
        if owner:
            return _other_owner(owner, attempt, job_id)
        if time.monotonic() > deadline:
            return f"the job's first node has not started within {seconds:.0f} s"
        time.sleep(0.2)


def may_be_unseen(run_dir: Path, attempt: int) -> bool:
    """True if the job of this attempt, which has left the queue, may have written files not yet visible here.

    The delay counts from when any process first found the job gone, and again from each later write.
    """
    delay = shared_fs.visibility_delay(run_dir)
    return not shared_fs.has_settled(run_dir / FOLDER / f".gone-{attempt}", run_dir / run_files.EVENTS, delay)


def has_started(run_dir: Path, attempt: int) -> bool:
    """True if a job has started this attempt."""
    return (run_dir / FOLDER / str(attempt) / "job").exists()


def mark_cancelled(run_dir: Path, attempt: int) -> None:
    """Record that `ablatrix cancel` ends this attempt, in a file of its own: the running job writes the events.

    Does nothing if the file cannot be written: the attempt ends anyway.
    """
    with contextlib.suppress(OSError):
        (run_dir / FOLDER / str(attempt) / "cancelled").touch()


def is_marked_cancelled(run_dir: Path, attempt: int) -> bool:
    """True if `ablatrix cancel`, not a plain scancel, ended this attempt."""
    return (run_dir / FOLDER / str(attempt) / "cancelled").exists()
