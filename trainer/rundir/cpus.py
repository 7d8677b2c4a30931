"""Number of CPUs that this process may use: affinity mask, Slurm allocation and cgroup quota."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def allotted_cores(environ: Mapping[str, str] = os.environ, cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the minimum of Slurm's CPUs per task, the affinity mask and the cgroup's CPU quota; at least 1."""
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
    """Return the CPU quota of this process's cgroup and its parents (v2, then v1), None if there is no limit."""
    quotas = [_v2_quota(folder / "cpu.max") for folder in _own_cgroups(root, membership)]
    quotas.append(_v1_quota(root / "cpu"))
    found = [quota for quota in quotas if quota is not None]
    return min(found) if found else None


def _own_cgroups(root: Path, membership: Path) -> list[Path]:
    """Return the folder of this process's cgroup and its parents, up to the mount point."""
    for line in _read(membership).splitlines():
        if line.startswith("0::/"):
            path = root / line.removeprefix("0::/")
            return [folder for folder in [path, *path.parents] if folder == root or root in folder.parents]
    return [root]


def _v2_quota(path: Path) -> float | None:
    words = _read(path).split()  # quota and period in microseconds: "max 100000" or "200000 100000"
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else None


def _v1_quota(folder: Path) -> float | None:
    quota, period = _read(folder / "cpu.cfs_quota_us").strip(), _read(folder / "cpu.cfs_period_us").strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
