"""Facts about one run, read from its folder. Standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ablatrix.orchestrator.study.command import SPEC
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.files import read_bytes_strict


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return summary.json; None if there is none, or if a command of the user has written a file of that name.

    Raises OSError where the file system fails: that is not the same as a run without a result.
    """
    content = read_bytes_strict(folder / run_files.SUMMARY)
    try:
        summary = run_files.parse_json(content.decode("utf-8"))
    except ValueError:
        return None
    return summary if isinstance(summary, dict) and "iters" in summary else None


def planned_steps(folder: Path) -> int:
    """Return the number of steps that a run is to make, 0 if it is not known."""
    spec = run_files.read_json(folder / SPEC)
    steps = spec.get("steps") if spec else _trainer_settings(folder).get("max_iters")
    return steps if isinstance(steps, int) and steps > 0 else 0


def is_command(folder: Path) -> bool:
    """True if the run is a command of the user instead of our trainer."""
    return (folder / SPEC).exists()


def is_distributed(folder: Path) -> bool:
    """True if several processes of our trainer share the run; a command starts its processes itself."""
    return not is_command(folder) and _trainer_settings(folder).get("strategy", "single") != "single"


def _trainer_settings(folder: Path) -> dict[str, Any]:
    section = (run_files.read_json(folder / run_files.CONFIG) or {}).get("trainer")
    return section if isinstance(section, dict) else {}
