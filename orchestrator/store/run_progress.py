"""Progress of a run: step, losses and speed, from the last rows of its loss.csv."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.files import open_for_reading

TAIL_BYTES = 4096


def read(run_dir: Path, max_iters: int) -> dict[str, Any]:
    """Return iter, loss, val_loss, compared, tokens_per_s and seconds_left; {} before the first row.

    compared: the newest value of a command's own metric.
    """
    names, rows = _last_rows(run_dir / run_files.LOSS)
    if not rows:
        return {}
    last = dict(zip(names, rows[-1], strict=False))
    step, dt, tokens = int(last["iter"]), _number(last.get("dt")), _number(last.get("tokens"))
    timed = dt is not None and 0 < dt < math.inf
    return {
        "iter": step,
        "loss": _number(last.get("loss")),
        "val_loss": _last_value(names, rows, "val_loss"),
        "compared": _last_value(names, rows, next((name for name in names if name not in loss_csv.COLUMNS), "")),
        "tokens_per_s": tokens / step / dt if timed and tokens and dt and step else None,
        "seconds_left": max(0, max_iters - step) * dt if timed and dt and max_iters else None,
    }


def _number(text: str | None) -> float | None:
    return loss_csv.parse_number(text) if text else None


def _last_rows(path: Path) -> tuple[Sequence[str], list[list[str]]]:
    """Return the column names and the last complete rows of a loss.csv."""
    try:
        with open_for_reading(path) as file:
            header = file.readline(TAIL_BYTES)
            skipped = os.fstat(file.fileno()).st_size - TAIL_BYTES
            if skipped > len(header):
                file.seek(skipped)
                file.readline(TAIL_BYTES)  # skip the rest of a row
            text = (header + file.read(TAIL_BYTES)).decode("utf-8", "replace")
    except OSError:
        return (), []
    return text.partition("\n")[0].strip().split(","), loss_csv.parse_rows(text)


def _last_value(names: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> float | None:
    if name not in names:
        return None
    column = names.index(name)
    return next((value for row in reversed(rows) if (value := _number(row[column])) is not None), None)
