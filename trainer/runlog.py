"""The files of a run folder, as the trainer writes them and everybody reads them. Free of torch.

Every file is replaced atomically or grows by whole lines, so that a reader at any moment, or after a kill at any
moment, finds complete records only.
"""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from trainer.durable import TRANSIENT, append_line, replace, retried, sync_file

CONFIG = "config.json"
ARGS = "args.txt"
LOSS = "loss.csv"
MODEL = "model.pt"
SUMMARY = "summary.json"
PROVENANCE = "provenance.json"
EVENTS = "events.jsonl"
JOB_OUT = "job.out"
SAMPLES = "samples.txt"
METRICS = "metrics.jsonl"
BEST = "best.pt"
TENSORBOARD = "tensorboard"
WANDB = "wandb"
# Files that a person makes in the run folder: write a checkpoint and go on; write one and stop.
SAVE_REQUEST = "save"
STOP_REQUEST = "stop"
STOP_FILE = f"the file {STOP_REQUEST}"  # who has stopped such a run, in its `stopped` event

# loss: mean training loss since the row before, nats per token; dt: mean seconds per step since the row before;
# val_loss: NLL of the held-out set after `iter` steps; lr: of step `iter`; grad_norm: mean since the row before, before
# clipping; tokens: trained on so far; seconds: of training so far, earlier attempts included.
COLUMNS = ("iter", "loss", "dt", "val_loss", "lr", "grad_norm", "tokens", "seconds")
CLOCK_COLUMNS = ("dt", "seconds")  # the only ones that differ between two runs of one configuration

Row = Mapping[str, float | int | None]

# Exit code of a trainer that was asked to stop and left a checkpoint (EX_TEMPFAIL of sysexits.h: try again).
EXIT_STOPPED = 75
# Of one that has found a newer attempt at its run: the run is in good hands, and there is nothing to start again.
EXIT_SUPERSEDED = 76
# Of one whose fellow process of the same run is gone, for a reason that only that one knows.
EXIT_LOST_PEER = 77


def atomic_write(
    path: Path, content: bytes | str, durable: bool = True, guard: Callable[[], None] = lambda: None
) -> None:
    """Replace `path` by `content`: `durable.replace` of what is in memory. Raises OSError; the old file is then there.

    durable=False leaves out the fsyncs, for files that can be made again; guard: called last before the replacement.
    """
    data = content.encode() if isinstance(content, str) else content
    replace(path, lambda file: file.write(data), durable, guard)


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
    return [record for record in json_objects(read_text(run_dir / EVENTS)) if isinstance(record.get("event"), str)]


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text of one a line; what is none, such as a torn line, is left out."""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def may_requeue(stopped: Mapping[str, Any]) -> bool:
    """May the run of this `stopped` event go on without a new submit? Not where a person's file asked it to stop."""
    return stopped.get("requeue", True) is not False


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


def kept_text(path: Path) -> str:
    """Like `read_text`, for what will be written back: only a file that is not there is empty. Raises OSError."""
    try:
        return retried(path, lambda again: path.read_bytes()).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def whole_rows(text: str) -> list[list[str]]:
    """The rows of a loss.csv under its header, each step once and in order.

    An unterminated last line is not a row. Of two rows of one step the first counts: an attempt that was thought dead
    may have added a row behind its successor's back, and both have trained the same.
    """
    lines = text[: text.rfind("\n") + 1].split("\n")
    header = lines[0].split(",")
    if tuple(header[:2]) != COLUMNS[:2]:
        return []
    split = (line.split(",") for line in lines[1:])
    rows = [row for row in split if len(row) == len(header) and row[0].isascii() and row[0].isdigit()]
    steps = [int(row[0]) for row in rows]
    if all(a < b for a, b in pairwise(steps)):
        return rows
    first: dict[int, list[str]] = {}
    for step, row in zip(steps, rows, strict=True):
        first.setdefault(step, row)
    return [first[step] for step in sorted(first)]


class StepLog:
    """Writer of a file of lines, some of which may be there already.

    It remembers the whole file, and puts it right where somebody else has changed it. guard: called right before every
    write; raises where this attempt may write no more.
    """

    def __init__(self, path: Path, lines: Iterable[str], guard: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.guard = guard
        self.content = bytearray("".join(line + "\n" for line in lines).encode())
        # In any case: whoever has the old file open, and wakes up in the middle of a write, writes to the old file
        self._rewrite()

    def append(self, line: str) -> None:
        """Add one line, whole (one write)."""
        append_line(self.path, line, self.guard)
        self.content += line.encode() + b"\n"

    def sync(self) -> None:
        """Have all lines survive a power cut: a checkpoint must not be older on disk than they are."""
        try:
            if self.path.stat().st_size == len(self.content):
                return sync_file(self.path)
        except OSError as error:
            if error.errno not in {errno.ENOENT, *TRANSIENT}:
                error.filename = str(self.path)
                raise
        return self._rewrite()

    def mend(self) -> None:
        """Write the file anew unless it is what this log has written, byte for byte."""
        if kept_text(self.path).encode() != self.content:
            self._rewrite()

    def _rewrite(self) -> None:
        atomic_write(self.path, bytes(self.content), guard=self.guard)


class LossLog(StepLog):
    """Writer of loss.csv. Opened at `step`, it drops a torn tail and every row after that step."""

    def __init__(self, run_dir: Path, step: int, guard: Callable[[], None] = lambda: None) -> None:
        path = run_dir / LOSS
        kept = [row for row in whole_rows(kept_text(path)) if int(row[0]) <= step]
        super().__init__(path, [",".join(row) for row in [list(COLUMNS), *kept]], guard)

    def write(self, row: Mapping[str, float | int | None]) -> None:
        """Append one row. Values left out or None stay empty; floats keep every digit."""
        self.append(",".join("" if row.get(name) is None else repr(row[name]) for name in COLUMNS))

    def rows(self) -> list[Row]:
        """The rows written so far, as numbers; None where a cell is empty."""
        cells = (line.split(",") for line in self.content.decode().splitlines()[1:])
        return [{name: _value(name, cell) for name, cell in zip(COLUMNS, row, strict=True)} for row in cells]


def _value(name: str, cell: str) -> float | int | None:
    try:
        return int(cell) if name in ("iter", "tokens") else float(cell)
    except ValueError:  # empty, or spoiled
        return None


class MetricsLog(StepLog):
    """Writer of metrics.jsonl: a JSON object for each row of loss.csv, with what else was measured there.

    rows: of loss.csv. What the file adds to them is kept; a row that it lacks is made from them.
    """

    def __init__(self, run_dir: Path, rows: Iterable[Row], guard: Callable[[], None] = lambda: None) -> None:
        path = run_dir / METRICS
        there = {record.get("iter"): record for record in json_objects(kept_text(path))}
        super().__init__(path, [_as_json({**there.get(row["iter"], {}), **row}) for row in rows], guard)

    def write(self, row: Row) -> None:
        """Append one row; NaN, which JSON has not, becomes null."""
        self.append(_as_json(row))


def _as_json(row: Mapping[str, Any]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False)
