"""The files of a run folder, as the trainer writes them and everybody reads them. Free of torch.

Every file is replaced atomically or grows by whole lines, so that a reader at any moment, or after a kill at any
moment, finds complete records only.
"""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG = "config.json"
ARGS = "args.txt"
LOSS = "loss.csv"
MODEL = "model.pt"
SUMMARY = "summary.json"
PROVENANCE = "provenance.json"
EVENTS = "events.jsonl"
JOB_OUT = "job.out"
SAMPLES = "samples.txt"

# loss: mean training loss since the row before, nats per token; dt: mean seconds per step since the row before;
# val_loss: NLL of the held-out set after `iter` steps; lr: of step `iter`; grad_norm: mean since the row before, before
# clipping; tokens: trained on so far; seconds: of training so far, earlier attempts included.
COLUMNS = ("iter", "loss", "dt", "val_loss", "lr", "grad_norm", "tokens", "seconds")
CLOCK_COLUMNS = ("dt", "seconds")  # the only ones that differ between two runs of one configuration

# Exit code of a trainer that was asked to stop and left a checkpoint (EX_TEMPFAIL of sysexits.h: try again).
EXIT_STOPPED = 75


def atomic_write(path: Path, content: bytes | str, durable: bool = True) -> None:
    """Replace `path` by `content`: a reader, or a machine after a power cut, has the old file or the new one.

    durable=False leaves out the fsyncs, for files that can be made again. Raises OSError as the file system gives it;
    the old file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut (fsync of the directory)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Append one line by a single write; a tail torn by a kill is closed first, so that it spoils only itself."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (("\n" if torn else "") + line + "\n").encode())
    finally:
        os.close(descriptor)


def append_event(run_dir: Path, event: str, **fields: Any) -> None:
    """Add one line to events.jsonl: what happened, when (Unix seconds), on which host, in which Slurm job."""
    record = {"event": event, "time": round(time.time(), 3), "host": socket.gethostname(), "pid": os.getpid()}
    job = slurm_job_id()
    if job:
        record["job_id"] = job
    append_line(run_dir / EVENTS, json.dumps({**record, **fields}))


def slurm_job_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """`123_4` for a task of an array, `123` for a plain job, None outside Slurm."""
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '')}"
    return environ.get("SLURM_JOB_ID")


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All whole records of events.jsonl, oldest first; a torn line is left out."""
    events = []
    for line in read_text(run_dir / EVENTS).splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("event"), str):
            events.append(record)
    return events


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_text(path: Path) -> str:
    """The text of a file, '' where there is none; bytes that are not UTF-8 are replaced."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def whole_rows(text: str) -> list[list[str]]:
    """The complete rows of a loss.csv under its header: an unterminated last line is not a row."""
    end = text.rfind("\n") + 1
    rows = list(csv.reader(io.StringIO(text[:end])))
    if not rows or tuple(rows[0][:2]) != COLUMNS[:2]:
        return []
    return [row for row in rows[1:] if len(row) == len(rows[0]) and row[0].isascii() and row[0].isdigit()]


class LossLog:
    """Writer of loss.csv. Opened at `step`, it drops a torn tail and every row after that step."""

    def __init__(self, run_dir: Path, step: int) -> None:
        self.path = run_dir / LOSS
        kept = [row for row in whole_rows(read_text(self.path)) if int(row[0]) <= step]
        text = "".join(",".join(row) + "\n" for row in [list(COLUMNS), *kept])
        if read_text(self.path) != text:
            atomic_write(self.path, text)

    def write(self, row: Mapping[str, float | int | None]) -> None:
        """Append one row, whole (one write). Values left out or None stay empty; floats keep every digit."""
        cells = ("" if row.get(name) is None else repr(row[name]) for name in COLUMNS)
        append_line(self.path, ",".join(cells))
