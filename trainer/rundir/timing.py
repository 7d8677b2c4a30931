"""Where and when a run was trained and how fast: `timing` in summary.json, by which runs are compared in time."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.events import read_events
from ablatrix.trainer.rundir.step_time import lower_quartile

KEY = "timing"  # in summary.json
STARTS = ("started", "resumed")


def describe(run_dir: Path, hardware: str) -> dict[str, Any]:
    """Return host, hardware, Unix time of the run's first start, and seconds per undisturbed step (None: not known)."""
    starts = (e["time"] for e in read_events(run_dir, newest_only=("heartbeat", "checkpoint")) if e["event"] in STARTS)
    cells = loss_csv.parse_columns(run_files.read_text(run_dir / run_files.LOSS), ("iter", "seconds"))
    rows = [(int(step), float(seconds)) for step, seconds in cells if seconds]
    per_step = lower_quartile([step for step, _ in rows], [seconds for _, seconds in rows])
    return {
        "host": socket.gethostname(),
        "hardware": hardware,
        "started": next(starts, None),
        "step_seconds": None if per_step is None else round(per_step, 9),
    }
