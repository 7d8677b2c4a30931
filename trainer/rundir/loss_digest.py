"""Digest of loss.csv in summary.json, which reveals changes made to the file after the run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.files import read_bytes

KEY = "loss_csv"  # key in summary.json


def describe(content: bytes, rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the number of rows, last step, size in bytes and SHA-256 of a loss.csv with this content and rows."""
    sha256 = hashlib.sha256(content).hexdigest()
    return {"rows": len(rows), "last_iter": _last_step(rows), "bytes": len(content), "sha256": sha256}


def find_change(run_dir: Path, summary: Mapping[str, Any]) -> str:
    """Return how the loss.csv of a finished run has changed, '' if it has not, or if there is none.

    Reads the file only if its size or modification time suggests that it was written after summary.json.
    """
    path = run_dir / run_files.LOSS
    try:
        there = path.stat()
        recorded = _recorded(summary)
        untouched = there.st_mtime_ns <= (run_dir / run_files.SUMMARY).stat().st_mtime_ns
        if recorded is None or (untouched and recorded["bytes"] == there.st_size):
            return ""
        content = read_bytes(path)
    except OSError:
        return ""
    rows = loss_csv.parse_rows(content.decode("utf-8", "replace"))
    return explain_change(summary, hashlib.sha256(content).hexdigest(), len(rows), _last_step(rows))


def explain_change(summary: Mapping[str, Any], sha256: str, rows: int, last: int) -> str:
    """Return how a loss.csv with this hash, number of rows and last step has changed, '' if it has not."""
    recorded = _recorded(summary)
    if recorded is None or recorded["sha256"] == sha256:
        return ""
    if not rows:
        return f"no row of {run_files.LOSS} can be read anymore"
    steps = recorded["last_iter"]
    end = f", it ends at step {last} of {steps}" if last < steps else ", not as they were written"
    return f"{run_files.LOSS} has been changed since: {rows} of {recorded['rows']} rows{end}"


def _recorded(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    found = summary.get(KEY)
    kinds = {"rows": int, "last_iter": int, "bytes": int, "sha256": str}
    whole = isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())
    return found if whole else None


def _last_step(rows: Sequence[Sequence[str]]) -> int:
    return int(rows[-1][0]) if rows else 0
