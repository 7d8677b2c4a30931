"""Choose a launcher: this machine, submitit or sbatch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ablatrix.orchestrator.slurm import commands as slurm

if TYPE_CHECKING:
    from ablatrix.orchestrator.slurm.batch import Launcher


def choose(name: str) -> str:
    """Return the launcher's name; `auto` is sbatch if this machine belongs to a cluster, else local."""
    if name != "auto":
        return name
    return "sbatch" if slurm.belongs_to_cluster() else "local"


def make(name: str) -> Launcher:
    """Return the launcher of this name. `local` is not a launcher but has a queue of its own."""
    if name == "submitit":
        from ablatrix.orchestrator.slurm.submitit import SubmititLauncher

        return SubmititLauncher()
    from ablatrix.orchestrator.slurm.sbatch import SbatchLauncher

    return SbatchLauncher()
