"""Waiting for a run to reach a state."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.loss_csv import parse_rows

PATIENCE = 600.0  # seconds; a guard against hangs, long enough for any slow or busy machine


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None) -> None:
    """Return once `condition()` is true; fail after PATIENCE, or if `process` ends before that."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def last_step(run_dir: Path) -> int:
    return max((int(row[0]) for row in parse_rows(run_files.read_text(run_dir / run_files.LOSS))), default=0)
