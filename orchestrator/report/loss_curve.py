"""Read a loss.csv as a curve that is small enough to draw."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic_core import from_json

from ablatrix.trainer.rundir import loss_csv

ROWS_KEPT = 400  # rows are averaged in groups so that at most this many remain
TRAIN = ("iter", "tokens", "loss", "lr", "grad_norm")
HELD_OUT = ("iter", "tokens", "val_loss")
READ = tuple(dict.fromkeys(TRAIN + HELD_OUT))
PIECE = 1 << 20  # bytes of text that are Python floats at once, before they are an array
OFTEN_ALIKE = ("iter", "tokens", "lr")  # columns that are often equal across the runs of a study
_NO_STEP = re.compile(rb"\n(?![0-9]{1,%d},|\Z)" % loss_csv.STEP_DIGITS)  # a line that does not begin with a step


@dataclass(frozen=True)
class Curve:
    """A loss.csv reduced for drawing.

    rows: number read; train: name -> (G,) means of groups of rows; held_out: name -> (E,) values at every evaluation.
    """

    rows: int
    last_iter: float
    train: Mapping[str, np.ndarray]
    held_out: Mapping[str, np.ndarray]


def parse_rows(data: bytes, column: str = "val_loss") -> dict[str, np.ndarray]:
    """Return the columns READ of a loss.csv as float64 (R,), nan for an empty cell; an unterminated line is not a row.

    column: the column that the study compares, returned as `val_loss`; for `loss` there are no evaluations.
    """
    data = data[: data.rfind(b"\n") + 1]
    header = data[: data.find(b"\n")].decode("utf-8", "replace").strip().split(",")
    if tuple(header[:2]) != loss_csv.COLUMNS[:2]:
        return {name: np.empty(0) for name in READ}
    if column != "val_loss":
        renamed = {"val_loss": "", **({} if column == "loss" else {column: "val_loss"})}
        header = [renamed.get(name, name) for name in header]
    present = [name for name in READ if name in header]
    try:
        columns = _parse_quickly(data, header, present)
    except (ValueError, OverflowError):
        columns = _parse_row_by_row(data.decode("utf-8", "replace"), header, present)
    rows = len(columns["iter"])
    return {name: columns[name] if name in columns else np.full(rows, np.nan) for name in READ}


def _parse_quickly(data: bytes, header: list[str], present: list[str]) -> dict[str, np.ndarray]:
    """Parse a file written by a single trainer.

    Raises ValueError for corrupt lines and for rows of two trainers, OverflowError for an integer beyond float64.
    """
    body = data[data.find(b"\n") + 1 :]
    separators = body.translate(None, b"0123456789.e+-naif")
    row = b"," * (len(header) - 1) + b"\n"
    if separators != row * (len(separators) // len(row)) or len(set(header)) < len(header):
        raise ValueError("a cell that is not a number, a line of another length, or a column twice")
    if _NO_STEP.search(data):
        raise ValueError("a step that is none")
    table = np.concatenate([np.empty(0), *map(_parse_cells, _pieces(body))]).reshape(-1, len(header))
    columns = dict(zip(header, table.T, strict=True))
    if (columns["iter"][1:] <= columns["iter"][:-1]).any():
        raise ValueError("a step twice")
    return {name: columns[name] for name in present}


def _pieces(body: bytes) -> Iterator[bytes]:
    """Yield the rows in pieces of about PIECE bytes."""
    start = 0
    while start < len(body):
        end = body.find(b"\n", start + PIECE) + 1 or len(body)
        yield body[start:end]
        start = end


def _parse_cells(rows: bytes) -> np.ndarray:
    """Return the cells of whole rows, (R * columns,): as a JSON array, which is parsed 3 times as fast as by numpy."""
    cells = rows.replace(b"\n", b",").replace(b"nan", b"NaN").replace(b"inf", b"Infinity")
    while b",," in cells:
        cells = cells.replace(b",,", b",null,")
    return np.array(from_json(b"[" + cells[:-1] + b"]"), dtype=np.float64)


def _parse_row_by_row(text: str, header: list[str], present: list[str]) -> dict[str, np.ndarray]:
    rows = loss_csv.parse_rows(text)
    at = {name: header.index(name) for name in present}
    return {name: np.array([_number(row[i]) for row in rows], dtype=np.float64) for name, i in at.items()}


def _number(cell: str) -> float:
    value = loss_csv.parse_number(cell)
    return math.nan if value is None else value


def reduce_rows(columns: Mapping[str, np.ndarray]) -> Curve:
    """Return at most ROWS_KEPT means of consecutive rows, and all evaluations.

    The group size is a power of two, so runs of similar length are grouped the same way and stay comparable.
    """
    rows = len(columns["iter"])
    size = 1
    while rows > size * ROWS_KEPT:
        size *= 2
    evaluated = np.isfinite(columns["val_loss"])
    return Curve(
        rows,
        float(columns["iter"][-1]) if rows else math.nan,
        {name: _group_means(columns[name], size) for name in TRAIN},
        {name: columns[name][evaluated] for name in HELD_OUT},
    )


def share_columns(curve: Curve, known: dict[Any, Any]) -> Curve:
    """Return the curve with arrays of OFTEN_ALIKE columns replaced by equal ones from `known`, to share memory."""
    train, held_out = (
        {name: _known(values, known) if name in OFTEN_ALIKE else values for name, values in columns.items()}
        for columns in (curve.train, curve.held_out)
    )
    return replace(curve, train=train, held_out=held_out)


def _known(values: np.ndarray, known: dict[Any, Any]) -> np.ndarray:
    content = values.tobytes()
    found = known.setdefault(hash(content), values)
    return np.asarray(found) if found.tobytes() == content else values


def _group_means(values: np.ndarray, size: int) -> np.ndarray:
    """Return the mean of the finite values in each group, (R,) -> (ceil(R / size),); nan if a group has none."""
    finite = np.isfinite(values)
    if size == 1 or not len(values):
        return np.where(finite, values, np.nan)
    starts = np.arange(0, len(values), size)
    counts = np.add.reduceat(finite.astype(np.float64), starts)
    counts[counts == 0] = np.nan
    return np.asarray(np.add.reduceat(np.where(finite, values, 0.0), starts) / counts)
