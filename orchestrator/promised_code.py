"""Does a job run the code that its run's provenance.json names? A purge may take the snapshot while the job waits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from trainer import runlog

PACKAGES = ("orchestrator", "trainer", "models")


def find_foreign(run_dir: Path) -> str:
    """Return a sentence that names code from elsewhere than the promised snapshot, '' if there is none.

    A run without a snapshot, such as one that was started by hand, promises nothing.
    """
    promised = (runlog.read_json(run_dir / runlog.PROVENANCE) or {}).get("code_snapshot")
    if not isinstance(promised, str):
        return ""
    for package in PACKAGES:
        root = _find_root(package)
        if root is None or root.name != promised:
            where = f"is taken from {root}" if root else "cannot be found"
            return (
                f"the package {package} {where}, not from the code snapshot {promised} that the run was submitted "
                "with: the snapshot was removed since, or another copy of Ablatrix comes first on PYTHONPATH; submit "
                "again with --retry"
            )
    return ""


def _find_root(package: str) -> Path | None:
    """Return the folder that holds a top-level package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:  # a folder of that name without a module is no package of ours
        return None
    return Path(spec.origin).resolve().parent.parent
