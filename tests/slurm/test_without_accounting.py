"""A cluster without a database: sacct fails at once, and the truth must come from files, squeue and scontrol."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablatrix.trainer.rundir.events import read_events
from tests.support.slurm_runs import nodes_taken, slurm
from tests.support.waiting import PATIENCE
from tests.support.workspace import Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("bare cluster")]


@pytest.fixture(autouse=True)
def alone() -> None:
    """They have a cluster of their own, and need not wait for the tests of the other one."""


@pytest.fixture(scope="module")
def bare_cluster(cluster: str, worker_id: str) -> Iterator[dict[str, str]]:
    """Environment in which Slurm's commands speak to a second cluster, of one node and without accounting.

    Each process that runs tests has its own: one would end that of the other when it has done its part of this file.
    """
    lab = f"/tmp/slurm-noacct-{worker_id}"
    first_port = int(os.environ.get("SLURM_LAB_BARE_PORT", "18900"))
    environment = {
        "SLURM_LAB": lab,
        "SLURM_LAB_PORT": str(first_port + 20 * int(worker_id.removeprefix("gw").replace("master", "0"))),
        "SLURM_LAB_ACCT": "0",
        "SLURM_LAB_NODES": "1",
        "SLURM_CONF": f"{lab}/etc/slurm.conf",
    }
    if os.geteuid():
        pytest.skip("the second cluster needs root")
    full = {**os.environ, **environment}
    subprocess.run([cluster, "up"], env=full, check=True, timeout=PATIENCE)
    yield environment
    subprocess.run([cluster, "down", "--purge"], env=full, check=True, timeout=PATIENCE)


@pytest.fixture
def bare_workspace(workspace: Workspace, bare_cluster: dict[str, str]) -> Iterator[Workspace]:
    workspace.environment = bare_cluster
    yield workspace
    workspace.run("cancel", "--all", "--yes", code=None)


def test_every_end_has_its_own_state(bare_workspace: Workspace) -> None:
    """One array, in it a cancelled, a killed, a finished and a requeued run."""
    workspace = bare_workspace
    assert subprocess.run(["sacct"], env=workspace.env(), capture_output=True, check=False).returncode
    study = workspace.write_study(iters=60, held=True)
    cells = ("baseline", "swiglu", "rmsnorm", "rope")
    only = [word for cell in cells for word in ("--only", cell)]
    workspace.run("submit", study, "--launcher", "sbatch", *only, "--no-report")
    states = workspace.wait(lambda states: all(states[cell]["iter"] >= 35 for cell in cells))
    slurm("scancel", states["baseline"]["job_id"], environment=workspace.env())
    events = read_events(workspace.run_folder("swiglu"))
    os.kill(int(next(e["pid"] for e in events if e["event"] == "started")), signal.SIGKILL)
    slurm("scancel", "--signal=USR2", states["rmsnorm"]["job_id"], environment=workspace.env())
    workspace.release()

    ended = ("cancelled", "failed", "lost", "done")
    states = workspace.wait(lambda states: all(states[cell]["state"] in ended for cell in cells))
    assert {cell: states[cell]["state"] for cell in cells} == {
        "baseline": "cancelled",
        "swiglu": "failed",
        "rmsnorm": "done",
        "rope": "done",
    }
    assert "resumed" in [event["event"] for event in read_events(workspace.run_folder("rmsnorm"))]
    workspace.run("submit", study, "--launcher", "sbatch", *only, "--retry", "--no-report")
    workspace.wait(lambda states: all(states[cell]["state"] == "done" for cell in cells))


def test_a_pending_job_that_is_cancelled(bare_workspace: Workspace) -> None:
    workspace = bare_workspace
    with nodes_taken(workspace.env()):
        workspace.run("submit", workspace.write_study(), "--no-report")
        states = workspace.states()
        assert {state["state"] for state in states.values()} == {"queued"}
        slurm("scancel", states["rope"]["job_id"], environment=workspace.env())
        states = workspace.wait(lambda states: states["rope"]["state"] != "queued")
        assert states["rope"]["state"] == "cancelled"
        assert {state["state"] for cell, state in states.items() if cell != "rope"} == {"queued"}


@pytest.mark.parametrize("by_hand", [True, False])
def test_an_array_that_is_cancelled_before_it_starts(bare_workspace: Workspace, by_hand: bool) -> None:
    workspace = bare_workspace
    with nodes_taken(workspace.env()):
        workspace.run("submit", workspace.write_study())
        states = workspace.states()
        assert {state["state"] for state in states.values()} == {"queued"}
        if by_hand:
            slurm("scancel", states["rope"]["job_id"].partition("_")[0], environment=workspace.env())
        else:
            workspace.run("cancel", "--all", "--yes")
            left = slurm("squeue", "--noheader", "--states=PENDING", "--format=%j", environment=workspace.env())
            assert left == "", "the report job is gone too"
        states = workspace.wait(lambda states: states["rope"]["state"] != "queued")
        assert {state["state"] for state in states.values()} == {"cancelled"}


def test_a_job_without_a_log_folder_is_lost_not_unknown(bare_workspace: Workspace) -> None:
    workspace = bare_workspace
    with nodes_taken(workspace.env()):
        workspace.run("submit", workspace.write_study(), "--only", "baseline", "--no-report")
        shutil.rmtree(Path(workspace.folder) / "out" / "study" / "logs")
    states = workspace.wait(lambda states: states["baseline"]["state"] not in ("queued", "running"))
    assert states["baseline"]["state"] == "lost"
    assert "log: its folder is missing" in states["baseline"]["reason"]
