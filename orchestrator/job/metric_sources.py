"""Where numbers come from: a CSV file, JSON lines, or patterns over a log; read as they grow, whole lines only."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ablatrix.orchestrator.store.log_tail import plain_lines
from ablatrix.orchestrator.study.command import CLOCK, EPOCH, MILLISECONDS

Found = dict[str, object]  # column of ours -> value as it was found
# What the usual loggers call our columns; `columns:` wins over it
USUAL: dict[str, tuple[str, ...]] = {
    "iter": ("iter", "step", "global_step", "iteration", "trainer/global_step", "_step"),
    "loss": ("loss", "train_loss", "train/loss", "loss/train", "Loss/train", "train_loss_step"),
    "val_loss": ("val_loss", "eval_loss", "val/loss", "eval/loss", "loss/val", "Loss/val", "valid_loss"),
    "lr": ("lr", "learning_rate", "train/learning_rate"),
    "grad_norm": ("grad_norm", "train/grad_norm"),
    "tokens": ("tokens",),
    "seconds": ("seconds",),
    "dt": ("dt",),
    MILLISECONDS: (MILLISECONDS,),
    EPOCH: (EPOCH,),
}
LONGEST_LINE = 1 << 20  # bytes; a progress bar may write megabytes without a newline
TAIL = 64


# How launchers and trainers mark whose line it is: torchrun, mpirun, [rank1]:, (RANK 1), and srun --label
_RANK = re.compile(
    r"^\s*(?:\[default(\d+)\]:|\[\d+,(\d+)\]<std(?:out|err)>:|[\[(]?\s*(?:local_)?rank\s*[:=_]?\s*(\d+)\s*[\])]?[:|\s])",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^ *(\d+): ")


def rank_of(line: str, labelled: bool = False) -> int:
    """Return the rank that a line names at its beginning, 0 where it names none.

    labelled: `1: ` is one, too, as `srun --label` writes it.
    """
    match = _RANK.match(line) or (_LABEL.match(line) if labelled else None)
    return int(match[match.lastindex or 0]) if match else 0


class Parser(Protocol):
    """Turns lines into what they say. seen: the names in the newest header or record."""

    seen: Sequence[str]

    def line(self, line: str) -> Iterator[Found]: ...


def candidates(columns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Column of ours -> its possible names in the source, the first that is there counts."""
    return USUAL | {name: (column,) for name, column in columns.items()} | {CLOCK: (CLOCK,)}


class CsvLines:
    """Rows of a CSV file under its header; a header that comes again, after a restart, counts from there on."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = candidates(columns)
        self.header: dict[str, int] = {}
        self.width = 0
        self.delimiter = ","
        self.seen: Sequence[str] = ()

    @property
    def _dialect(self) -> dict[str, Any]:
        return {"delimiter": self.delimiter, "skipinitialspace": True}

    def line(self, line: str) -> Iterator[Found]:
        line = line.strip(" \r\n").removeprefix("#").strip(" ")
        if not self.header:
            self.delimiter = max(",;\t|", key=line.count) if any(sign in line for sign in ",;\t|") else " "
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], **self._dialect), [])]
        except csv.Error:
            return
        if not self.seen:
            self.seen = cells
        at = {name: cells.index(n) for name, known in self.columns.items() for n in reversed(known) if n in cells}
        if "iter" in at:
            self.header, self.width, self.seen = at, len(cells), cells
        elif self.header and any(cells):  # a row of another width cannot be read, and is counted
            yield {name: cells[index] for name, index in self.header.items()} if len(cells) == self.width else {}


class JsonLines:
    """An object per line; `train.loss` is looked for as it is written, then inside `train`."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = candidates(columns)
        self.seen: Sequence[str] = ()

    def line(self, line: str) -> Iterator[Found]:
        try:
            record = json.loads(line)
        except ValueError:
            return
        if isinstance(record, dict):
            yield from self.pick(record)

    def pick(self, record: dict[str, Any]) -> Iterator[Found]:
        """What a record says, if it says a step."""
        self.seen = tuple(record)
        found: Found = {}
        for name, known in self.columns.items():
            value = next((v for n in known if (v := _inside(record, n)) is not None), None)
            if value is not None and not isinstance(value, bool):
                found[name] = value
        if "iter" in found:
            yield found


def _inside(record: Any, name: str) -> Any:
    if name in record:
        return record[name]
    for part in name.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


class Patterns:
    """Regular expressions with named groups; all of them are tried on every line."""

    def __init__(self, patterns: Sequence[str], labelled: bool = False) -> None:
        self.labelled = labelled
        self.patterns = [re.compile(pattern) for pattern in patterns]
        self.seen: Sequence[str] = ()

    def line(self, line: str) -> Iterator[Found]:
        if rank_of(line, self.labelled):  # every process prints its own loss; that of rank 0 counts
            return
        for pattern in self.patterns:
            for match in pattern.finditer(line):
                yield {name: value for name, value in match.groupdict().items() if value is not None}


def make_parser(kind: str, columns: Mapping[str, str], patterns: Sequence[str] = (), labelled: bool = False) -> Parser:
    """Return the parser of a kind of source. labelled: `1: ` at the beginning of a line of output is its rank."""
    if kind == "regex":
        return Patterns(patterns, labelled)
    return CsvLines(columns) if kind == "csv" else JsonLines(columns)


class Follower:
    """Reads the whole lines that a file has grown by; a file that was written anew is read from its beginning."""

    def __init__(self, path: Path, parser: Parser) -> None:
        self.path, self.parser = path, parser
        self.offset = 0
        self._tail = b""  # the bytes before offset: are they still there?

    def read(self, final: bool = False) -> Iterator[Found]:
        """What has come since the last call. final: nothing more will come, so a last line without its end counts."""
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            self._check(file.fileno())
            file.seek(self.offset)
            for raw in iter(lambda: file.readline(LONGEST_LINE), b""):
                if not raw.endswith(b"\n") and len(raw) < LONGEST_LINE and not final:
                    break
                self.offset += len(raw)
                self._tail = (self._tail + raw)[-TAIL:]
                for line in plain_lines(raw):
                    yield from self.parser.line(line)

    def _check(self, descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        start = max(0, self.offset - len(self._tail))
        if (
            size < self.offset
            or os.pread(descriptor, self.offset - start, start) != self._tail[-(self.offset - start) :]
        ):
            self.offset, self._tail = 0, b""

    def mark(self) -> dict[str, Any]:
        """Where it stands, to go on from there in another process."""
        return {"offset": self.offset, "tail": self._tail.hex()}

    def go_on(self, mark: Mapping[str, Any]) -> None:
        """Go on where another one stood; a mark that makes no sense is left alone."""
        try:
            tail, offset = bytes.fromhex(mark["tail"]), int(mark["offset"])
        except (KeyError, TypeError, ValueError):
            return
        if 0 < len(tail) <= min(offset, TAIL):
            for _ in self.parser.line(self._first_line()):  # the header of a CSV file
                pass
            self.offset, self._tail = offset, tail

    def _first_line(self) -> str:
        try:
            with open(self.path, "rb") as file:
                return next(plain_lines(file.readline(LONGEST_LINE)), "")
        except OSError:
            return ""


class JsonFile:
    """A whole JSON document that is rewritten as it grows: a list of records, or Hugging Face's trainer_state.json.

    Anything else is read as JSON lines.
    """

    def __init__(self, path: Path, parser: JsonLines) -> None:
        self.path, self.parser = path, parser
        self.lines = Follower(path, parser)
        self._known = (0, 0)  # time and size of what was read last
        self._count = 0  # its records

    def read(self, final: bool = False) -> Iterator[Found]:
        """The records that have come since the last call."""
        try:
            there = os.stat(self.path)
            if (there.st_mtime_ns, there.st_size) == self._known and not final:
                return
            document = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return
        except ValueError:
            yield from self.lines.read(final)
            return
        self._known = there.st_mtime_ns, there.st_size
        records = document.get("log_history", [document]) if isinstance(document, dict) else document
        records = [record for record in records if isinstance(record, dict)] if isinstance(records, list) else []
        new = records[self._count :] if len(records) >= self._count else records
        self._count = len(records)
        for record in new:
            yield from self.parser.pick(record)

    def mark(self) -> dict[str, Any]:
        """Where the reader of lines stands; a document is read from its beginning."""
        return self.lines.mark()

    def go_on(self, mark: Mapping[str, Any]) -> None:
        """Go on where another one stood."""
        self.lines.go_on(mark)
