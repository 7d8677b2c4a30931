"""The files of a run folder, as the trainer writes them and everybody reads them. Free of torch.

Every file is replaced atomically or grows by whole lines, so that a reader at any moment, or after a kill at any
moment, finds complete records only.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from ablatrix.trainer.rundir.atomic import TRANSIENT, append_line, replace, retried, sync_file
from ablatrix.trainer.rundir.processes import identity
from ablatrix.trainer.rundir.safe_open import PLAIN

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
QUEUE = ".queue"  # of the orchestrator: who may queue the run
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

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?inf(?:inity)?|nan", re.ASCII | re.I)
# What our events say about themselves, by its type: whoever reads them need not look again
EVENT_FIELDS: dict[str, tuple[type, ...]] = {
    "event": (str,),
    "time": (int, float),
    **dict.fromkeys(("pid", "attempt", "start"), (int,)),
    "iter": (int, type(None)),
    **dict.fromkeys(
        ("host", "born", "token", "launcher", "state", "reason", "signal", "by", "slurm", "cluster"), (str,)
    ),
    "job_id": (str, type(None)),
}

# Exit code of a trainer that was asked to stop and left a checkpoint (EX_TEMPFAIL of sysexits.h: try again).
EXIT_STOPPED = 75
# Of one that has found a newer attempt at its run: the run is in good hands, and there is nothing to start again.
EXIT_SUPERSEDED = 76
# Of one whose fellow process of the same run is gone, for a reason that only that one knows.
EXIT_LOST_PEER = 77


def atomic_write(
    path: Path,
    content: bytes | str,
    durable: bool = True,
    guard: Callable[[], None] = lambda: None,
    mode: int = PLAIN,
) -> None:
    """Replace `path` by `content`: `durable.replace` of what is in memory. Raises OSError; the old file is then there.

    durable=False leaves out the fsyncs, for files that can be made again; guard: called last before the replacement;
    mode: less the umask.
    """
    data = content.encode() if isinstance(content, str) else content
    replace(path, lambda file: file.write(data), durable, guard, mode)


def append_event(run_dir: Path, event: str, **fields: Any) -> None:
    """Add one line to events.jsonl: what happened, when (Unix seconds), by which process, in which Slurm job."""
    pid = os.getpid()
    record = {"event": event, "time": round(time.time(), 3), "host": socket.gethostname(), "pid": pid}
    record["born"] = identity(pid)
    job = slurm_job_id()
    if job:
        record["job_id"] = job
        if os.environ.get("SLURM_CLUSTER_NAME"):
            record["cluster"] = os.environ["SLURM_CLUSTER_NAME"]
    append_line(run_dir / EVENTS, json.dumps({**record, **fields}))


def slurm_job_id(environ: Mapping[str, str] = os.environ) -> str | None:
    """`123_4` for a task of an array, `123` for a plain job, None outside Slurm."""
    if "SLURM_ARRAY_JOB_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ.get('SLURM_ARRAY_TASK_ID', '')}"
    return environ.get("SLURM_JOB_ID")


def read_events(run_dir: Path, certain: bool = False, newest_only: Collection[str] = ()) -> list[dict[str, Any]]:
    """All whole records of events.jsonl, oldest first; a torn line, or one that nobody of ours writes, is left out.

    certain: raise OSError where the file system fails, instead of taking the file for one that is not there.
    newest_only: events of which only the newest few matter; parsing thousands of heartbeats takes long.
    """
    path = run_dir / EVENTS
    text = certain_bytes(path).decode("utf-8", "replace") if certain else read_text(path)
    for event in newest_only:
        text = _without_older(text, event)
    return [record for record in json_objects(text) if _is_event(record)]


def _without_older(text: str, event: str, kept: int = 2) -> str:
    """The lines of an events.jsonl without those of this event but for the last few (the very last may be torn)."""
    start = f'{{"event": "{event}"'
    if text.count(start) <= kept:
        return text
    lines = text.split("\n")
    older = [i for i, line in enumerate(lines) if line.startswith(start)][:-kept]
    for i in reversed(older):
        del lines[i]
    return "\n".join(lines)


def _is_event(record: Mapping[str, Any]) -> bool:
    for name, value in record.items():
        kinds = EVENT_FIELDS.get(name)
        if kinds is None:
            continue
        if not isinstance(value, kinds) or isinstance(value, bool):
            return False
    return "event" in record


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text of one a line; what is none, such as a torn line, is left out."""
    for line in text.split("\n"):
        record = parse_json(line)
        if isinstance(record, dict):
            yield record


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, None if it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def may_requeue(stopped: Mapping[str, Any]) -> bool:
    """May the run of this `stopped` event go on without a new submit? Not where a person's file asked it to stop."""
    return stopped.get("requeue", True) is not False


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None where there is none that can be read."""
    try:
        value = parse_json(read_bytes(path).decode("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def opened(path: Path, buffering: int = -1) -> BinaryIO:
    """A file open for reading. Raises OSError, also for what is no file: a device has no end, a pipe may be silent."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):  # before `open`, which would name the descriptor of a folder instead of its path
        os.close(descriptor)
        raise OSError(errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb", buffering)


def read_bytes(path: Path) -> bytes:
    """Return a file's content. Raises OSError as `opened` does."""
    with opened(path) as file:
        return file.read()


def certain_bytes(path: Path) -> bytes:
    """Like `read_bytes`, b'' for a file that does not exist.

    Raises OSError if the file system still fails after all retries: the content is then unknown, not empty.
    """
    try:
        return retried(path, lambda again: read_bytes(path))
    except OSError as error:
        if error.errno in TRANSIENT:
            raise
        return b""


def read_text(path: Path) -> str:
    """Return the text of a file, '' if it cannot be read; bytes that are not UTF-8 are replaced."""
    try:
        return read_bytes(path).decode("utf-8", "replace")
    except OSError:
        return ""


def kept_text(path: Path) -> str:
    """Like `read_text`, for what will be written back: only a file that is not there is empty. Raises OSError."""
    try:
        return retried(path, lambda again: read_bytes(path)).decode("utf-8", "replace")
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
    rows = [row for row in split if len(row) == len(header) and is_step(row[0])]
    steps = [int(row[0]) for row in rows]
    if all(a < b for a, b in pairwise(steps)):
        return rows
    first: dict[int, list[str]] = {}
    for step, row in zip(steps, rows, strict=True):
        first.setdefault(step, row)
    return [first[step] for step in sorted(first)]


def our_rows(text: str, columns: Sequence[str] = COLUMNS) -> list[list[str]]:
    """`whole_rows` in the order of `columns`, whatever the header's is; what is no number is an empty cell."""
    header = text[: text.find("\n") + 1].strip().split(",")
    at = [header.index(name) if name in header else None for name in columns]
    rows = whole_rows(text)
    return [["" if i is None or number(row[i]) is None else row[i].strip() for i in at] for row in rows]


def is_step(cell: str) -> bool:
    """True if the cell is the number of a step, as `LossLog` writes it."""
    return cell.isascii() and cell.isdigit()


def number(cell: str) -> float | None:
    """A number as a loss.csv spells it, None for anything else: `float` would take `1_0` and other scripts' digits."""
    cell = cell.strip()
    return float(cell) if _NUMBER.fullmatch(cell) else None


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints in a run folder, newest first."""
    return sorted(run_dir.glob("checkpoint-" + "[0-9]" * 8 + ".pt"), reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step in the name of a checkpoint."""
    return int(checkpoint.stem.rpartition("-")[2])


def lacking_rows(run_dir: Path, steps: Collection[int]) -> int:
    """How many of these steps have no row in loss.csv. Raises OSError where it cannot be read."""
    return len(set(steps) - {int(row[0]) for row in whole_rows(kept_text(run_dir / LOSS))})


def contents(run_dir: Path) -> list[str]:
    """The names of the files in a run folder, for whoever looks later whether one is missing."""
    found = []
    for folder, inner, names in os.walk(run_dir):
        inner[:] = [name for name in inner if not name.startswith(".") or name == QUEUE]
        place = os.path.relpath(folder, run_dir)
        found += [os.path.normpath(os.path.join(place, name)) for name in names if not name.startswith(".")]
    return sorted(set(found) - {SAVE_REQUEST, STOP_REQUEST})


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
    """Writer of loss.csv. Opened at `step`, it drops a torn tail and every row after that step.

    due: False drops the row of that step, evaluated: False its evaluation. They were written because the run ended
    there, and it now goes on.
    """

    def __init__(
        self,
        run_dir: Path,
        step: int,
        guard: Callable[[], None] = lambda: None,
        due: bool = True,
        evaluated: bool = True,
    ) -> None:
        path = run_dir / LOSS
        kept = [row for row in our_rows(kept_text(path)) if int(row[0]) < step + due]
        if kept and not evaluated and int(kept[-1][0]) == step:
            kept[-1][COLUMNS.index("val_loss")] = ""
        super().__init__(path, [",".join(row) for row in [list(COLUMNS), *kept]], guard)

    def write(self, row: Mapping[str, float | int | None]) -> None:
        """Append one row. Values left out or None stay empty; floats keep every digit."""
        self.append(",".join("" if row.get(name) is None else repr(row[name]) for name in COLUMNS))

    def rows(self) -> list[Row]:
        """The rows written so far, as numbers; None where a cell is empty."""
        cells = (line.split(",") for line in self.content.decode().split("\n")[1:-1])
        return [{name: _value(name, cell) for name, cell in zip(COLUMNS, row, strict=True)} for row in cells]


def _value(name: str, cell: str) -> float | int | None:
    if name in ("iter", "tokens") and is_step(cell):
        return int(cell)
    return number(cell)


class MetricsLog(StepLog):
    """Writer of metrics.jsonl: a JSON object for each row of loss.csv, with what else was measured there.

    rows: of loss.csv. What the file adds to them is kept; a row that it lacks is made from them.
    """

    def __init__(self, run_dir: Path, rows: Iterable[Row], guard: Callable[[], None] = lambda: None) -> None:
        path = run_dir / METRICS
        records = json_objects(kept_text(path))
        there = {record["iter"]: record for record in records if isinstance(record.get("iter"), int)}
        super().__init__(path, [_as_json({**there.get(row["iter"], {}), **row}) for row in rows], guard)

    def write(self, row: Row) -> None:
        """Append one row; NaN, which JSON has not, becomes null."""
        self.append(_as_json(row))


def _as_json(row: Mapping[str, Any]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False)


def best_stands(summary: Mapping[str, Any], step: int, eval_interval: int) -> bool:
    """True if the best evaluation of a finished run is one that a longer run has made by `step`, too.

    The last evaluation of a run may be one that it made only because it ended there.
    """
    best = summary.get("best_iter")
    return isinstance(best, int) and 0 < best <= step and eval_interval > 0 and best % eval_interval == 0
