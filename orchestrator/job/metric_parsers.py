"""Parsers of a command's output: CSV rows, JSON objects, and regular expressions over the lines of a log."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from ablatrix.orchestrator.study.command import CLOCK, EPOCH, MILLISECONDS

Found = dict[str, object]  # column of loss.csv -> value as written by the command
# Names that common loggers use for the columns of loss.csv; `columns:` takes precedence
USUAL_NAMES: dict[str, tuple[str, ...]] = {
    "iter": ("iter", "step", "global_step", "iteration", "trainer/global_step", "_step"),
    "loss": ("loss", "train_loss", "train/loss", "loss/train", "Loss/train", "train_loss_step"),
    "val_loss": ("val_loss", "eval_loss", "val/loss", "eval/loss", "loss/val", "Loss/val", "valid_loss"),
    "lr": ("lr", "learning_rate", "train/learning_rate"),
    "grad_norm": ("grad_norm", "train/grad_norm"),
    **{name: (name,) for name in ("tokens", "seconds", "dt", MILLISECONDS, EPOCH)},
}
# How launchers and trainers mark the rank that printed a line: torchrun, mpirun, [rank1]:, (RANK 1), srun --label
_RANK = re.compile(
    r"^\s*(?:\[default(\d+)\]:|\[\d+,(\d+)\]<std(?:out|err)>:|[\[(]?\s*(?:local_)?rank\s*[:=_]?\s*(\d+)\s*[\])]?[:|\s])",
    re.IGNORECASE,
)
_LABEL = re.compile(r"^ *(\d+): ")


class Parser(Protocol):
    """Extracts the values in a line. seen: the names in the newest header or record."""

    seen: Sequence[str]

    def parse(self, line: str) -> Iterator[Found]: ...


def _known_names(columns: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return column of loss.csv -> its possible names in the source, in order of precedence."""
    return USUAL_NAMES | {name: (column,) for name, column in columns.items()} | {CLOCK: (CLOCK,)}


class CsvParser:
    """Parses the rows of a CSV file below its header, which a restarted command may write again."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.names = _known_names(columns)
        self.seen: Sequence[str] = ()
        self._indices: dict[str, int] = {}
        self._width = 0
        self._delimiter = ","

    def parse(self, line: str) -> Iterator[Found]:
        line = line.strip(" \r\n").removeprefix("#").strip(" ")
        if not self._indices:
            self._delimiter = max(",;\t|", key=line.count) if any(sign in line for sign in ",;\t|") else " "
        try:
            row = next(csv.reader([line], delimiter=self._delimiter, skipinitialspace=True), [])
        except csv.Error:
            return
        cells = [cell.strip() for cell in row]
        self.seen = self.seen or cells
        indices = {name: cells.index(n) for name, known in self.names.items() for n in reversed(known) if n in cells}
        if "iter" in indices:
            self._indices, self._width, self.seen = indices, len(cells), cells
        elif self._indices and any(cells):  # a row of a different width cannot be read; {} is counted as bad
            width_fits = len(cells) == self._width
            yield {name: cells[index] for name, index in self._indices.items()} if width_fits else {}


class JsonParser:
    """Parses one JSON object per line; `train.loss` is looked up as a key, then as `loss` inside `train`."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.names = _known_names(columns)
        self.seen: Sequence[str] = ()

    def parse(self, line: str) -> Iterator[Found]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(record, dict):
            yield from self.pick(record)

    def pick(self, record: dict[str, Any]) -> Iterator[Found]:
        """Yield the values in a record that has a step."""
        self.seen = tuple(record)
        found: Found = {}
        for name, known in self.names.items():
            value = next((v for n in known if (v := _look_up(record, n)) is not None), None)
            if value is not None and not isinstance(value, bool):
                found[name] = value
        if "iter" in found:
            yield found


def _look_up(record: Any, name: str) -> Any:
    if name in record:
        return record[name]
    for part in name.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


class PatternParser:
    """Searches every line printed by rank 0 for all of several regular expressions with named groups.

    labeled: True if `1: ` at the start of a line is its rank, as printed by `srun --label`.
    """

    def __init__(self, patterns: Sequence[str], labeled: bool = False) -> None:
        self.labeled = labeled
        self.patterns = [re.compile(pattern) for pattern in patterns]
        self.seen: Sequence[str] = ()

    def parse(self, line: str) -> Iterator[Found]:
        match = _RANK.match(line) or (_LABEL.match(line) if self.labeled else None)
        if match and int(match[match.lastindex or 0]):
            return
        for pattern in self.patterns:
            for match in pattern.finditer(line):
                yield {name: value for name, value in match.groupdict().items() if value is not None}


def make_parser(kind: str, columns: Mapping[str, str], patterns: Sequence[str] = (), labeled: bool = False) -> Parser:
    """Return the parser for a kind of source."""
    if kind == "regex":
        return PatternParser(patterns, labeled)
    return CsvParser(columns) if kind == "csv" else JsonParser(columns)
