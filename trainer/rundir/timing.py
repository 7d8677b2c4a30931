"""Entries added to summary.json at the end of a run: `loss_csv`, and `timing`, for comparing the speed of runs."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir import loss_csv, loss_digest, run_files
from ablatrix.trainer.rundir.events import read_events
from ablatrix.trainer.rundir.files import read_bytes
from ablatrix.trainer.rundir.step_time import lower_quartile

KEY = "timing"  # key in summary.json
STARTS = ("started", "resumed")


def describe(run_dir: Path, hardware: str) -> dict[str, Any]:
    """Return `loss_csv` (see loss_digest.py) and `timing` of a run that has just ended.

    timing: host, hardware, Unix time of the run's first start, and seconds per undisturbed step (None if unknown).
    """
    content = read_bytes(run_dir / run_files.LOSS)
    rows, column = loss_csv.parse_rows(content.decode("utf-8", "replace")), loss_csv.COLUMNS.index("seconds")
    timed = [(int(row[0]), float(row[column])) for row in rows if row[column]]
    per_step = lower_quartile([step for step, _ in timed], [seconds for _, seconds in timed])
    starts = (e["time"] for e in read_events(run_dir, newest_only=("heartbeat", "checkpoint")) if e["event"] in STARTS)
    timing = {
        "host": socket.gethostname(),
        "hardware": hardware,
        "started": next(starts, None),
        "step_seconds": None if per_step is None else round(per_step, 9),
    }
    return {loss_digest.KEY: loss_digest.describe(content, rows), KEY: timing}
