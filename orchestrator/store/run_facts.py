"""Facts about one run, read from its folder. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.study import dotted
from ablatrix.orchestrator.study.command import SPEC
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.files import StrPath, read_bytes_strict
from ablatrix.trainer.rundir.program import ROOT


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return summary.json; None if there is none, or if the user's command has written a file of that name.

    Raises OSError if the file system fails, which does not mean that the run has no result.
    """
    content = read_bytes_strict(f"{folder}/{run_files.SUMMARY}")
    try:
        summary = run_files.parse_json(content.decode("utf-8"))
    except ValueError:
        return None
    return summary if isinstance(summary, dict) and "iters" in summary else None


def read_settings(folder: Path) -> dict[str, Any]:
    """Return config.json as dotted key -> value, {} if it cannot be read."""
    return dotted.flatten(run_files.read_json(folder / run_files.CONFIG) or {})


def planned_steps(folder: Path, summary: Mapping[str, Any] | None = None) -> int:
    """Return the planned number of steps of a run, 0 if unknown. summary: of a finished run, which also has it."""
    steps = (summary or {}).get("max_iters")
    if steps is None:
        spec = run_files.read_json(folder / SPEC)
        steps = spec.get("steps") if spec else _trainer_settings(folder).get("max_iters")
    return steps if isinstance(steps, int) and steps > 0 else 0


def is_command(folder: StrPath) -> bool:
    """True if the run is a user's command instead of our trainer."""
    return os.path.exists(f"{folder}/{SPEC}")


def is_distributed(folder: Path) -> bool:
    """True if several processes of our trainer share the run; a command starts its processes itself."""
    return not is_command(folder) and _trainer_settings(folder).get("strategy", "single") != "single"


def find_foreign_code(folder: Path) -> str:
    """Return an error message if this process does not run the run's code snapshot, else ''.

    A purge may remove the snapshot while the job waits. A run started by hand has no snapshot.
    """
    name = (run_files.read_json(folder / run_files.PROVENANCE) or {}).get("code_snapshot")
    root = Path(ROOT).resolve()
    if not isinstance(name, str) or root.name == name:
        return ""
    return (
        f"Ablatrix is imported from {root}, not from the code snapshot {name} that the run was submitted with: the "
        "snapshot has been removed, or another copy of Ablatrix comes first on PYTHONPATH; submit again with --retry"
    )


def _trainer_settings(folder: Path) -> dict[str, Any]:
    section = (run_files.read_json(f"{folder}/{run_files.CONFIG}") or {}).get("trainer")
    return section if isinstance(section, dict) else {}
