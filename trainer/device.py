"""Where a run computes, and with how many threads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """The device of `trainer.device`; `auto` is cuda, then mps, then cpu. Raises UserError where it is not there."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    here = {"cuda": cuda, "mps": mps, "cpu": True}[device.type]
    if here and device.type == "cuda" and device.index is not None:
        here = device.index < torch.cuda.device_count()
    if not here:
        raise UserError(f"trainer.device: {name} is not available on this machine; use auto, or ask for a GPU node")
    return device


def describe(device: torch.device) -> str:
    """`cuda (NVIDIA H200)` or `cpu (4 threads)`."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def prepare() -> None:
    """Set up this process for training. Before torch is imported, whose libraries look at it once."""
    limit_threads()
    keep_memory()


def keep_memory() -> None:
    """Have the C library keep freed memory instead of giving it back to the kernel.

    By default glibc maps every larger tensor anew, and the kernel clears its pages at the first touch: half of the time
    of a small model's step. Elsewhere than with glibc nothing is done.
    """
    import ctypes

    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 64 << 20)


def tune_products(device: torch.device) -> None:
    """Choose how float32 matrices are multiplied.

    cuda: TF32. cpu: torch's setting "medium" sends products to oneDNN, which is up to twice as fast as MKL on
    processors that are not Intel's; where the hardware has units for it, it also lets them round to bfloat16. So it is
    taken only where a product against float64 shows that nothing is rounded.
    """
    import torch

    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if device.type != "cpu":
        return
    torch.set_float32_matmul_precision("medium")
    generator = torch.Generator().manual_seed(0)
    for shape in ((256, 256), (512, 48)):
        a = torch.randn(shape, generator=generator)
        b = torch.randn(shape[::-1], generator=generator)
        exact = a.double() @ b.double()
        # bfloat16 would be wrong by 4e-3, float32 is by less than 1e-6
        if float((a @ b - exact).abs().max() / exact.abs().max()) > 1e-5:
            torch.set_float32_matmul_precision("highest")
            return


def limit_threads(environ: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Give OpenMP and MKL the cores that this job has, unless OMP_NUM_THREADS says otherwise.

    Must run before torch is imported: the libraries read the variable once. By default they count the whole node, and
    two jobs that both do so are many times slower than one after the other.
    """
    environ.setdefault("OMP_NUM_THREADS", str(allotted_cores(environ)))


def allotted_cores(environ: Mapping[str, str] = os.environ, cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """The least of Slurm's CPUs per task, the affinity mask and the cgroup's CPU quota; at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS
    cores = [len(affinity(0)) if affinity else os.cpu_count() or 1]
    slurm = environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isascii() and slurm.isdigit():
        cores.append(int(slurm))
    quota = cgroup_quota(cgroups)
    if quota is not None:
        cores.append(int(quota))
    return max(1, min(cores))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs that the cgroup of this process and those around it allow (v2, then v1); None: no limit."""
    quotas = [_v2_quota(folder / "cpu.max") for folder in _own_cgroups(root, membership)]
    quotas.append(_v1_quota(root / "cpu"))
    found = [quota for quota in quotas if quota is not None]
    return min(found) if found else None


def _own_cgroups(root: Path, membership: Path) -> list[Path]:
    """The folder of this process's cgroup and all above it, up to the mount point."""
    for line in _read(membership).splitlines():
        if line.startswith("0::/"):
            path = root / line.removeprefix("0::/")
            return [folder for folder in [path, *path.parents] if folder == root or root in folder.parents]
    return [root]


def _v2_quota(path: Path) -> float | None:
    words = _read(path).split()  # "max 100000" or "200000 100000", microseconds per period
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else None


def _v1_quota(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
