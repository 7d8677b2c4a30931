"""Does a job run the code that its run's provenance.json names? A purge may take the snapshot while the job waits."""

from __future__ import annotations

from pathlib import Path

from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.program import ROOT


def find_foreign(run_dir: Path) -> str:
    """Return a sentence that names code from elsewhere than the promised snapshot, '' if there is none.

    A run without a snapshot, such as one that was started by hand, promises nothing.
    """
    promised = (run_files.read_json(run_dir / run_files.PROVENANCE) or {}).get("code_snapshot")
    if not isinstance(promised, str):
        return ""
    root = Path(ROOT).resolve()
    if root.name == promised:
        return ""
    return (
        f"Ablatrix is imported from {root}, not from the code snapshot {promised} that the run was submitted with: the "
        "snapshot was removed since, or another copy of Ablatrix comes first on PYTHONPATH; submit again with --retry"
    )
