"""Waiting for a run to get somewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.loss_csv import parse_rows


def wait_for(condition: Callable[[], Any], seconds: float = 180) -> None:
    """Return once `condition()` is true; fail after `seconds`, which a busy machine does not reach."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def last_step(run_dir: Path) -> int:
    return max((int(row[0]) for row in parse_rows(run_files.read_text(run_dir / run_files.LOSS))), default=0)
