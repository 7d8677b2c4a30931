"""The truth about runs, found out without the code under test, and whether what `status` says agrees with it."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.store.submit_attempts import FOLDER as CLAIMS
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import read_events
from tests.support.waiting import PATIENCE

PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
GIVEN_UP = ("lost", "cancelled", "planned")

Key = tuple[str, str]  # the token in a job's comment, its index in the array ("" for a plain job)


@dataclass(frozen=True)
class Queued:
    """A job in Slurm's queue."""

    id: str
    state: str
    reason: str


@dataclass(frozen=True)
class Truth:
    """What was the case at one moment."""

    time: float
    jobs: Mapping[Key, Queued] | None  # None: the controller did not answer
    trainers: Mapping[str, frozenset[int]]  # folder of a run -> the processes that train it
    done: frozenset[str]  # folders with a whole summary.json

    @classmethod
    def now(cls, folders: Iterable[Path], environment: Mapping[str, str]) -> Truth:
        done = frozenset(str(folder) for folder in folders if _finished(folder))
        return cls(time.time(), jobs(environment), trainers(), done)

    def job(self, folder: Path) -> Queued | None:
        """The run's job in the queue, by the token of its newest claim."""
        key = claimed(folder)
        return (self.jobs or {}).get(key) if key else None


def _finished(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / run_files.SUMMARY).read_text())["fingerprint"])
    except (OSError, ValueError, KeyError):
        return False


def jobs(environment: Mapping[str, str]) -> dict[Key, Queued] | None:
    """All jobs in the queue that a study's submit has put there; None where the controller does not answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i|%T|%k|%r"]
    try:
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return None
    if answer.returncode:
        return None
    found = {}
    for line in answer.stdout.splitlines():
        job_id, state, comment, reason = line.split("|", 3)
        token = re.fullmatch(r"ablatrix:([0-9a-f]+)", comment)
        if token:
            found[token[1], job_id.partition("_")[2]] = Queued(job_id, state, reason)
    return found


def trainers() -> dict[str, frozenset[int]]:
    """Folder of a run -> the processes that train it, by their command lines."""
    found: dict[str, set[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if "ablatrix.trainer" in words:
            for word in words:
                if word.startswith("--system.work_dir="):
                    with contextlib.suppress(OSError):  # it has ended meanwhile
                        folder = (process / "cwd").readlink() / word.partition("=")[2]
                        found.setdefault(str(folder), set()).add(int(process.name))
    return {folder: frozenset(pids) for folder, pids in found.items()}


def claimed(folder: Path) -> Key | None:
    """Under which token, and at which index, the run was queued last."""
    newest = _newest_claim(folder)
    try:
        claim = json.loads((newest / "claim.json").read_text()) if newest else None
    except (OSError, ValueError):
        return None
    return (claim["token"], str(claim["index"]) if claim["tasks"] > 1 else "") if claim else None


def _newest_claim(folder: Path) -> Path | None:
    attempts = [path for path in (folder / CLAIMS).glob("[0-9]*") if path.name.isdigit()]
    return max(attempts, key=lambda path: int(path.name), default=None)


def contradiction(
    said: Mapping[str, Any], folder: Path, before: Truth, after: Truth, silent: bool, submitting: bool
) -> str:
    """Why what `status` said of a run was true at no moment between `before` and `after`; '' where it may have been.

    silent: it said that the controller did not answer, and that it showed what was known last. submitting: a submit was
    at work in between.
    """
    state, key = said["state"], str(folder)
    if state == "done":
        return "" if key in after.done else "done without a summary"
    if key in before.done:
        return f"{state}, though it had finished"
    working = before.trainers.get(key, frozenset()) & after.trainers.get(key, frozenset())
    if state in ("failed", "stopped") and not said["requeued"] and working:
        return f"{state}, though a trainer works at it"  # looked at once more by the caller: it may be about to end
    if silent or before.jobs is None or after.jobs is None:
        return ""
    found = before.job(folder), after.job(folder)
    if state == "running":
        begun = any(before.time <= event["time"] <= after.time for event in read_events(folder))
        moved = working or begun or key in after.done or submitting
        return "" if moved or any(job and job.state not in PENDING for job in found) else _describe(said, found)
    return _against_queue(said, found, submitting)


def _against_queue(said: Mapping[str, Any], found: tuple[Queued | None, Queued | None], submitting: bool) -> str:
    state = said["state"]
    waiting = any(job and job.state in PENDING for job in found)
    if state == "queued" and "being submitted" in said["reason"]:
        return "" if submitting or not all(found) else _describe(said, found)
    if (state == "queued" or said["requeued"]) and not waiting and not submitting:
        return _describe(said, found)
    return _describe(said, found) if state in GIVEN_UP and all(found) else ""


def _describe(said: Mapping[str, Any], found: tuple[Queued | None, Queued | None]) -> str:
    return f"{said['state']}, though its job was {found[0]} and is {found[1]}"
