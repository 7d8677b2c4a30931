"""events.jsonl: what happened to a run, one JSON object per line."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir.console import complain
from ablatrix.trainer.rundir.files import StrPath, append_line, read_bytes_strict
from ablatrix.trainer.rundir.processes import identity
from ablatrix.trainer.rundir.run_files import EVENTS, STOP_REQUEST, json_objects, read_text

STOP_FILE = f"the file {STOP_REQUEST}"  # `by` of a `stopped` event when a person requested the stop

# Types of the fields that readers rely on; an event with a field of a different type is skipped
FIELDS: dict[str, tuple[type, ...]] = {
    "event": (str,),
    "time": (int, float),
    **dict.fromkeys(("pid", "attempt", "start"), (int,)),
    "iter": (int, type(None)),
    **dict.fromkeys(
        ("host", "born", "token", "launcher", "state", "reason", "signal", "by", "slurm", "cluster"), (str,)
    ),
    "job_id": (str, type(None)),
}


def append_event(run_dir: Path, event: str, **fields: Any) -> None:
    """Append one line to events.jsonl: what happened, when (Unix seconds), in which process and Slurm job."""
    pid = os.getpid()
    record = {"event": event, "time": round(time.time(), 3), "host": socket.gethostname(), "pid": pid}
    record["born"] = _own_identity(pid)
    job = slurm_job_id()
    if job:
        record["job_id"] = job
        if os.environ.get("SLURM_CLUSTER_NAME"):
            record["cluster"] = os.environ["SLURM_CLUSTER_NAME"]
    append_line(f"{run_dir}/{EVENTS}", json.dumps({**record, **fields}))


def note(run_dir: Path, event: str, **fields: Any) -> None:
    """Append a best-effort event: if the write fails, log it instead of raising."""
    try:
        append_event(run_dir, event, **fields)
    except OSError as error:
        complain(f"{run_dir / EVENTS}: {event} {fields or ''} not written: {error.strerror}")


@cache
def _own_identity(pid: int) -> str:
    """Return the identity of this process, which does not change."""
    return identity(pid)


os.register_at_fork(after_in_child=_own_identity.cache_clear)


def slurm_job_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return `123_4` for a task of an array, `123` for a plain job, None outside Slurm."""
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '')}"
    return environ.get("SLURM_JOB_ID")


def read_events(run_dir: StrPath, certain: bool = False, newest_only: Collection[str] = ()) -> list[dict[str, Any]]:
    """Return the events of a run, oldest first, skipping torn and foreign lines.

    certain: raise OSError if the file system fails, instead of returning no events. newest_only: kinds of events of
    which only the newest few before an event of a different kind are read; parsing thousands of heartbeats is slow.
    """
    path = f"{run_dir}/{EVENTS}"
    text = read_bytes_strict(path).decode("utf-8", "replace") if certain else read_text(path)
    records = json_objects(_without_older(text, newest_only)) if text else ()
    return [record for record in records if _is_event(record)]


def may_requeue(stopped: Mapping[str, Any]) -> bool:
    """True if the run of this `stopped` event may go on without a new submit, as no person's file asked it to stop."""
    return stopped.get("requeue", True) is not False


def _without_older(text: str, events: Collection[str], kept: int = 2) -> str:
    """Return the text without lines of these events that are followed by `kept` lines of the same event.

    Only lines up to the next different event count as following. The last line may be torn.
    """
    starts = [f'{{"event": "{event}"' for event in events]
    if all(text.count(start) <= kept for start in starts):
        return text
    lines: list[str] = []
    following = dict.fromkeys(starts, 0)
    for line in reversed(text.split("\n")):
        start = next((start for start in starts if line.startswith(start)), "")
        if start:
            following[start] += 1
        elif line:
            following = dict.fromkeys(starts, 0)
        if not start or following[start] <= kept:
            lines.append(line)
    return "\n".join(reversed(lines))


def _is_event(record: Mapping[str, Any]) -> bool:
    for name, value in record.items():
        kinds = FIELDS.get(name)
        if kinds is None:
            continue
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
    return "event" in record
