"""The GPUs of this machine, for the local launcher."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

from ablatrix.trainer.rundir.errors import UserError


def find_devices(wanted: str | None) -> list[str]:
    """Return the GPUs to use: `wanted` (`0,1`), else CUDA_VISIBLE_DEVICES, else all; [] means the CPU.

    Raises UserError for a GPU that this machine does not have.
    """
    if wanted is not None:
        chosen = [name.strip() for name in wanted.split(",") if name.strip()]
        _require_devices(chosen, wanted)
        return chosen
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [name for name in _existing_devices() if name.isdigit()]


def _require_devices(chosen: Sequence[str], wanted: str) -> None:
    there = _existing_devices() if chosen else []
    if chosen and not there:
        raise UserError(f"--devices {wanted}: no GPU here; leave --devices out to train on the CPU")
    unknown = [name for name in chosen if not any(name == d or (d.startswith(name) and "-" in name) for d in there)]
    if unknown:
        indices = ", ".join(name for name in there if name.isdigit())
        raise UserError(f"--devices {wanted}: there is no GPU {', '.join(unknown)} here; GPUs: {indices}")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"--devices {wanted}: a GPU is listed twice")


def _existing_devices() -> list[str]:
    """Return indices and UUIDs (MIG devices included) of this machine's GPUs, from nvidia-smi, else from torch."""
    count = "import torch; print(*(f'GPU {i}:' for i in range(torch.cuda.device_count())), sep='\\n')"
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "-L"]
    elif os.path.exists("/dev/kfd"):
        command = [sys.executable, "-P", "-c", count]
    else:
        return []
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU ([0-9]+):", listed, re.MULTILINE) + re.findall(r"UUID: ([\w/-]+)", listed)
