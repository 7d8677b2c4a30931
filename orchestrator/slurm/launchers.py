"""Ways to get jobs run: on this machine, through submitit, through sbatch."""

from __future__ import annotations

from ablatrix.orchestrator.slurm import commands as slurm
from ablatrix.orchestrator.slurm.batch import Launcher


def choose(name: str) -> str:
    """`auto` as a launcher's name: Slurm when sbatch is there and knows a cluster, else this machine."""
    if name != "auto":
        return name
    return "sbatch" if slurm.belongs_to_cluster() else "local"


def make(name: str) -> Launcher:
    """The launcher of this name (not `local`, which is a queue of its own)."""
    if name == "submitit":
        from ablatrix.orchestrator.slurm.submitit import SubmititLauncher

        return SubmititLauncher()
    from ablatrix.orchestrator.slurm.sbatch import SbatchLauncher

    return SbatchLauncher()
