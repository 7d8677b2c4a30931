"""Rows of a run's loss.csv without its clock columns."""

from __future__ import annotations

from pathlib import Path

from ablatrix.trainer.rundir import loss_csv, run_files


def rows_of(run_dir: Path) -> dict[int, list[str]]:
    lines = (run_dir / run_files.LOSS).read_text().splitlines()
    return {int(line.split(",")[0]): timeless(line) for line in lines[1:]}


def timeless(line: str) -> list[str]:
    """Return the cells of a row, without clock columns."""
    cells = line.split(",")
    return [cell for name, cell in zip(loss_csv.COLUMNS, cells, strict=True) if name not in loss_csv.CLOCK_COLUMNS]
