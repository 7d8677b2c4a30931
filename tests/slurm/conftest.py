"""Tests here need a real Slurm: `tests/slurm/cluster install && tests/slurm/cluster up` (as root), or your own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import one_at_a_time
from tests.support.forked_python import ForkedPython
from tests.support.slurm_runs import ITERS
from tests.support.waiting import PATIENCE
from tests.support.workspace import Workspace

HERE = Path(__file__).parent


def cluster_problem() -> str:
    """Why there is no Slurm to test with, '' where there is one."""
    if not shutil.which("sbatch"):
        return "no sbatch on this machine"
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=PATIENCE, check=False)
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


def group_of(request: pytest.FixtureRequest) -> str:
    """The group of tests that this one belongs to: "slurm-1", "slurm-2" or "slurm-3"."""
    marker = request.node.get_closest_marker("xdist_group")
    return str(marker.args[0])


@pytest.fixture(autouse=True)
def alone(shared_dir: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests of one cluster run one after the other, in any process: some of them break its daemons.

    The groups slurm-2 and slurm-3 have the clusters in $SLURM_LAB-2 and $SLURM_LAB-3 where these are.
    """
    number = int(group_of(request).removeprefix("slurm-"))
    lab = f"{os.environ.get('SLURM_LAB', '/tmp/slurm-lab')}-{number}"
    if number > 1 and Path(lab, ".slurm-lab").exists():
        monkeypatch.setenv("SLURM_LAB", lab)
        monkeypatch.setenv("SLURM_CONF", f"{lab}/etc/slurm.conf")
        monkeypatch.setenv("SLURM_LAB_PORT", str(int(os.environ.get("SLURM_LAB_PORT", "17800")) + 30 * (number - 1)))
    else:
        number = 1
    with one_at_a_time(shared_dir, f"slurm-{number}"):
        yield


@pytest.fixture
def slurm_workspace(cluster: str, workspace: Workspace) -> Iterator[Workspace]:
    """A workspace whose jobs are cancelled at the end of the test."""
    yield workspace
    for study in (workspace.folder / "out").glob("*/study.json"):
        workspace.run("cancel", "--all", "--yes", "--study", study.parent.name, code=None)


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, offline_cache: Path, corpus: Path, forked_python: ForkedPython
) -> list[list[str]]:
    """The baseline's loss.csv from a run that nobody touched."""
    folder = tmp_path_factory.mktemp("undisturbed")
    workspace = Workspace(folder, corpus, offline_cache, python=forked_python.python)
    workspace.run("submit", workspace.write_study(iters=ITERS), "--launcher", "local", "--only", "baseline")
    return workspace.loss("baseline")
