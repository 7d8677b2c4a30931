"""What breaks in a cluster: the state shown is the true one, and the finished loss.csv is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.slurm_runs import Started
from tests.support.waiting import PATIENCE, wait_for
from tests.support.workspace import Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm-2")]


@pytest.fixture
def restored(cluster: str) -> Iterator[str]:
    """For tests that break daemons: brings them back."""
    yield cluster
    subprocess.run([cluster, "up"], check=True, timeout=PATIENCE)


def test_loss_of_a_node(slurm_workspace: Workspace, restored: str, undisturbed: list[list[str]]) -> None:
    started = Started(slurm_workspace)
    subprocess.run([restored, "fail", started.node], check=True, timeout=PATIENCE)
    gone = started.until(lambda state: state["state"] != "running")
    assert gone["state"] in ("stopped", "queued", "lost"), gone
    subprocess.run([restored, "up"], check=True, timeout=PATIENCE)
    if gone["state"] == "lost":
        slurm_workspace.run(*started.words, "--retry", code=None)
    started.finish(undisturbed)


def test_kill_of_slurmd_leaves_an_old_trainer_that_gives_way(
    slurm_workspace: Workspace, restored: str, undisturbed: list[list[str]]
) -> None:
    """The old trainer lives on beside the second attempt."""
    started = Started(slurm_workspace)
    old = started.trainer_pid()
    os.kill(old, signal.SIGSTOP)  # it wakes up when its successor is at work
    lab = Path(os.environ.get("SLURM_LAB", "/tmp/slurm-lab"))
    try:
        os.kill(int((lab / "run" / f"{started.node}.pid").read_text()), signal.SIGKILL)
        started.until(lambda state: "resumed" in started.events() or started.events().count("started") > 1)
    finally:
        os.kill(old, signal.SIGCONT)
    subprocess.run([restored, "up"], check=True, timeout=PATIENCE)
    started.finish(undisturbed)


def test_restart_of_the_controller(slurm_workspace: Workspace, restored: str, undisturbed: list[list[str]]) -> None:
    started = Started(slurm_workspace)
    lab = Path(os.environ.get("SLURM_LAB", "/tmp/slurm-lab"))
    submitted = time.time()
    wait_for(lambda: (lab / "state" / "job_state").stat().st_mtime > submitted)  # a kill before loses the job
    os.kill(int((lab / "run" / "slurmctld.pid").read_text()), signal.SIGKILL)
    shown = slurm_workspace.run("status", "study").stdout
    assert "Slurm has not answered since" in shown
    assert started.state()["state"] in ("running", "done")
    subprocess.run([restored, "up"], check=True, timeout=PATIENCE)
    assert "not answering" not in slurm_workspace.run("status", "study").stdout
    started.finish(undisturbed, resumed=False)
