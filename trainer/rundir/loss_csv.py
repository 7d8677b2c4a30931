"""Read and write loss.csv and metrics.jsonl: the rows of a run and their columns."""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir.files import TRANSIENT, append_line, atomic_write, read_text_strict, sync_file
from ablatrix.trainer.rundir.run_files import LOSS, METRICS, json_objects

# loss: mean training loss since the previous row, nats per token; dt: mean seconds per step since the previous row;
# val_loss: NLL of the held-out set after `iter` steps; lr: at step `iter`; grad_norm: mean since the previous row,
# before clipping; tokens: trained on so far; seconds: training time so far, including earlier attempts.
COLUMNS = ("iter", "loss", "dt", "val_loss", "lr", "grad_norm", "tokens", "seconds")
STEP_DIGITS = 15  # digits of the largest step: a float64 represents every integer of that many digits
CLOCK_COLUMNS = ("dt", "seconds")  # the only columns that differ between two runs of the same configuration

Row = Mapping[str, float | int | None]

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?inf(?:inity)?|nan", re.ASCII | re.I)


def parse_rows(text: str) -> list[list[str]]:
    """Return the rows of a loss.csv below its header, each step once and in order.

    An unterminated last line is not a row. If a step has two rows, the first counts: a superseded attempt may have
    added the second one late, and both attempts trained identically.
    """
    lines = text[: text.rfind("\n") + 1].split("\n")
    header = lines[0].split(",")
    if tuple(header[:2]) != COLUMNS[:2]:
        return []
    split = (line.split(",") for line in lines[1:])
    rows = [row for row in split if len(row) == len(header) and is_step(row[0])]
    steps = [int(row[0]) for row in rows]
    if steps == sorted(set(steps)):
        return rows
    first: dict[int, list[str]] = {}
    for step, row in zip(steps, rows, strict=True):
        first.setdefault(step, row)
    return [first[step] for step in sorted(first)]


def parse_columns(text: str, columns: Sequence[str] = COLUMNS) -> list[list[str]]:
    """Return the rows of a loss.csv in the order of `columns`; missing and non-numeric cells become empty."""
    header = text[: text.find("\n") + 1].strip().split(",")
    at = [header.index(name) if name in header else None for name in columns]
    rows = parse_rows(text)
    return [["" if i is None or parse_number(row[i]) is None else row[i].strip() for i in at] for row in rows]


def is_step(cell: str) -> bool:
    """True if the cell is a step number as Ablatrix writes it."""
    return cell.isascii() and cell.isdigit() and len(cell) <= STEP_DIGITS


def parse_number(cell: str) -> float | None:
    """Parse a number in loss.csv's format, return None for anything else (`float` would accept `1_0`)."""
    cell = cell.strip()
    return float(cell) if _NUMBER.fullmatch(cell) else None


def count_missing_rows(run_dir: Path, steps: Collection[int]) -> int:
    """Return how many of these steps have no row in loss.csv. Raises OSError if it cannot be read."""
    return len(set(steps) - {int(row[0]) for row in parse_rows(read_text_strict(run_dir / LOSS))})


class LineLog:
    """Writer of a file of lines, which may already exist.

    It remembers the whole file, so that changes made by others can be undone. guard: called before every write; raises
    if this attempt may no longer write.
    """

    def __init__(self, path: Path, lines: Iterable[str], guard: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.guard = guard
        self.content = bytearray("".join(line + "\n" for line in lines).encode())
        self._rewrite()  # always: a superseded attempt that has the old file open must not write to the new one

    def append(self, line: str) -> None:
        """Append one line in a single write."""
        append_line(self.path, line, self.guard)
        self.content += line.encode() + b"\n"

    def sync(self) -> None:
        """Make all lines survive a power cut: they must be on disk before the checkpoint that covers them."""
        try:
            if self.path.stat().st_size == len(self.content):
                return sync_file(self.path)
        except OSError as error:
            if error.errno not in {errno.ENOENT, *TRANSIENT}:
                error.filename = str(self.path)
                raise
        return self._rewrite()

    def restore(self) -> None:
        """Rewrite the file unless it is byte for byte what this log has written."""
        if read_text_strict(self.path).encode() != self.content:
            self._rewrite()

    def _rewrite(self) -> None:
        atomic_write(self.path, bytes(self.content), guard=self.guard)


class LossLog(LineLog):
    """Writer of loss.csv. Opening it at `step` drops a torn tail and every row after that step.

    due: False drops the row of that step. evaluated: False drops its evaluation. Both were written only because the run
    ended there, and it now continues.
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
        kept = [row for row in parse_columns(read_text_strict(path)) if int(row[0]) < step + due]
        if kept and not evaluated and int(kept[-1][0]) == step:
            kept[-1][COLUMNS.index("val_loss")] = ""
        super().__init__(path, [",".join(row) for row in [list(COLUMNS), *kept]], guard)

    def write(self, row: Row) -> None:
        """Append one row. Missing values and None become empty cells; floats keep every digit."""
        self.append(",".join("" if row.get(name) is None else repr(row[name]) for name in COLUMNS))

    def rows(self) -> list[Row]:
        """Return the rows written so far as numbers, with None for empty cells."""
        cells = (line.split(",") for line in self.content.decode().split("\n")[1:-1])
        return [{name: _value(name, cell) for name, cell in zip(COLUMNS, row, strict=True)} for row in cells]


class MetricsLog(LineLog):
    """Writer of metrics.jsonl: a JSON object for each row of loss.csv, with additional measurements.

    rows: the rows of loss.csv. Additional measurements in the file are kept; missing rows are created from `rows`.
    """

    def __init__(self, run_dir: Path, rows: Iterable[Row], guard: Callable[[], None] = lambda: None) -> None:
        path = run_dir / METRICS
        records = json_objects(read_text_strict(path))
        there = {record["iter"]: record for record in records if isinstance(record.get("iter"), int)}
        super().__init__(path, [_to_json({**there.get(row["iter"], {}), **row}) for row in rows], guard)

    def write(self, row: Row) -> None:
        """Append one row; NaN, which JSON lacks, becomes null."""
        self.append(_to_json(row))


def _value(name: str, cell: str) -> float | int | None:
    if name in ("iter", "tokens") and is_step(cell):
        return int(cell)
    return parse_number(cell)


def _to_json(row: Mapping[str, Any]) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json.dumps(finite, allow_nan=False)
