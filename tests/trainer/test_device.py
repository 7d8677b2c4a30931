"""Devices and the cores that a job really has."""

from __future__ import annotations

from pathlib import Path

import torch

from ablatrix.trainer.device import limit_threads, pick_device
from ablatrix.trainer.rundir.cpus import allotted_cores, cgroup_quota


def test_auto_prefers_the_accelerator() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto").type == expected
    assert pick_device("cpu").type == "cpu"


def test_slurm_narrows_the_cores(tmp_path: Path) -> None:
    assert allotted_cores({"SLURM_CPUS_PER_TASK": "1"}, tmp_path) == 1
    assert allotted_cores({"SLURM_CPUS_PER_TASK": "100000"}, tmp_path) == allotted_cores({}, tmp_path)
    assert allotted_cores({"SLURM_CPUS_PER_TASK": "x"}, tmp_path) >= 1


def test_quota_of_an_outer_cgroup_counts(tmp_path: Path) -> None:
    membership = tmp_path / "self"
    membership.write_text("0::/job/step\n")
    step = tmp_path / "cg" / "job" / "step"
    step.mkdir(parents=True)
    (step / "cpu.max").write_text("max 100000\n")
    assert cgroup_quota(tmp_path / "cg", membership) is None
    (step.parent / "cpu.max").write_text("150000 100000\n")
    assert cgroup_quota(tmp_path / "cg", membership) == 1.5
    (step / "cpu.max").write_text("50000 100000\n")
    assert cgroup_quota(tmp_path / "cg", membership) == 0.5


def test_quota_of_cgroup_v1(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_quota(tmp_path, tmp_path / "none") is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    assert cgroup_quota(tmp_path, tmp_path / "none") == 3.0


def test_threads_that_were_set_stay() -> None:
    environ = {"OMP_NUM_THREADS": "7"}
    limit_threads(environ)
    assert environ == {"OMP_NUM_THREADS": "7"}
    environ = {"SLURM_CPUS_PER_TASK": "1"}
    limit_threads(environ)
    assert environ["OMP_NUM_THREADS"] == "1"
