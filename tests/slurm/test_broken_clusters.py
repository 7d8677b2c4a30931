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
from tests.support.workspace import Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm-2")]


@pytest.fixture
def restored(cluster: str) -> Iterator[str]:
    """For tests that break daemons: brings them back."""
    yield cluster
    subprocess.run([cluster, "up"], check=True, timeout=120)


def test_loss_of_a_node(slurm_workspace: Workspace, restored: str, undisturbed: list[list[str]]) -> None:
    started = Started(slurm_workspace)
    node = started.after_step(120)["node"]
    subprocess.run([restored, "fail", node], check=True, timeout=180)
    gone = started.until(lambda state: state["state"] != "running", seconds=120)
    assert gone["state"] in ("stopped", "queued", "lost"), gone
    subprocess.run([restored, "up"], check=True, timeout=120)
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
        os.kill(int((lab / "run" / f"{started.state()['node']}.pid").read_text()), signal.SIGKILL)
        started.until(lambda state: "resumed" in started.events() or started.events().count("started") > 1, seconds=180)
    finally:
        os.kill(old, signal.SIGCONT)
    subprocess.run([restored, "up"], check=True, timeout=120)
    started.until(lambda state: state["state"] == "done")
    assert slurm_workspace.loss("baseline") == undisturbed


def test_restart_of_the_controller(slurm_workspace: Workspace, restored: str, undisturbed: list[list[str]]) -> None:
    started = Started(slurm_workspace)
    lab = Path(os.environ.get("SLURM_LAB", "/tmp/slurm-lab"))
    time.sleep(3)  # a controller that is killed within seconds of a submit forgets the job
    os.kill(int((lab / "run" / "slurmctld.pid").read_text()), signal.SIGKILL)
    shown = slurm_workspace.run("status", "study").stdout
    assert "Slurm has not answered since" in shown
    assert started.state()["state"] in ("running", "done")
    subprocess.run([restored, "up"], check=True, timeout=120)
    assert "not answering" not in slurm_workspace.run("status", "study").stdout
    started.finish(undisturbed, resumed=False)
