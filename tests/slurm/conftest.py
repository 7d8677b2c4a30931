"""Tests here need a real Slurm: `tests/slurm/cluster install && tests/slurm/cluster up` (as root), or your own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SECOND, one_at_a_time
from tests.support.workspace import Workspace

HERE = Path(__file__).parent


def cluster_problem() -> str:
    """Why there is no Slurm to test with, '' where there is one."""
    if not shutil.which("sbatch"):
        return "no sbatch on this machine"
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "slurmctld does not answer"
    return "" if " is UP" in ping.stdout else "slurmctld is not up"


@pytest.fixture(scope="session")
def cluster() -> str:
    """Skips where there is no cluster; else the path of the script that controls the test cluster."""
    problem = cluster_problem()
    if problem:
        pytest.skip(f"{problem}: start one with tests/slurm/cluster install && tests/slurm/cluster up")
    return str(HERE / "cluster")


@pytest.fixture(autouse=True)
def alone(shared_dir: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests of one cluster run one after the other, in whichever process: some of them break its daemons.

    Those of test_survival.py, half of the time, have the cluster of SLURM_LAB_2 where that is set.
    """
    second = os.environ.get("SLURM_LAB_2", "")
    lab = second if second and request.path.name == SECOND else ""
    if lab:
        monkeypatch.setenv("SLURM_LAB", lab)
        monkeypatch.setenv("SLURM_CONF", f"{lab}/etc/slurm.conf")
        monkeypatch.setenv("SLURM_LAB_PORT", os.environ["SLURM_LAB_2_PORT"])
    with one_at_a_time(shared_dir, "slurm2" if lab else "slurm"):
        yield


@pytest.fixture
def slurm_workspace(cluster: str, workspace: Workspace) -> Iterator[Workspace]:
    """A workspace whose jobs are cancelled at the end of the test."""
    yield workspace
    for study in (workspace.folder / "out").glob("*/study.json"):
        workspace.run("cancel", "--all", "--yes", "--study", study.parent.name, code=None)
