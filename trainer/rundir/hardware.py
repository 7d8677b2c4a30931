"""Model names of this machine's processors. Standard library only."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

NVIDIA = Path("/proc/driver/nvidia/gpus")
CPUS = Path("/proc/cpuinfo")


def processor(cpus: Path = CPUS) -> str:
    """Return the model of this machine's CPU."""
    return _field(cpus, "model name") or platform.processor() or platform.machine()


def gpu_models(gpus: Path = NVIDIA) -> list[str]:
    """Return the distinct models of this machine's NVIDIA GPUs."""
    return sorted({_field(path, "Model") for path in gpus.glob("*/information")} - {""})


def visible_gpus(environ: Mapping[str, str] = os.environ, gpus: Path = NVIDIA) -> list[str]:
    """Return names of the GPUs that this process may use, unique within the machine; [] if there are none.

    Slurm's numbers take precedence: the ones in CUDA_VISIBLE_DEVICES start at 0 in every job whose GPUs are confined.
    """
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "CUDA_VISIBLE_DEVICES"):
        if name in environ:
            return [word for word in environ[name].replace(" ", "").split(",") if word not in ("", "-1", "NoDevFiles")]
    return sorted(path.name for path in gpus.glob("*"))


def _field(path: Path, name: str) -> str:
    """Return the value of the first line `name : value` of a file, '' if there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((value.strip() for key, _, value in (line.partition(":") for line in lines) if key.strip() == name), "")
