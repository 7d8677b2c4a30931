"""Jobs that die early or are killed: what status and logs say, and that no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from ablatrix.trainer.rundir import processes
from ablatrix.trainer.rundir.events import read_events
from tests.support.waiting import wait_for
from tests.support.workspace import Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm-3")]

STUDY = """\
name: study
command: sh train.sh {{run_dir}} {{seed}}
base: {{}}
design: [baseline]
seeds: {seeds}
metrics: {{regex: 'iter (?P<iter>\\d+) loss (?P<loss>\\S+)'}}
slurm: {{time: "00:05:00", mem: 100M, setup: {setup}}}
"""


def write(workspace: Workspace, setup: str = "[]", seeds: int = 1) -> None:
    (workspace.folder / "study.yaml").write_text(STUDY.format(setup=setup, seeds=seeds))
    (workspace.folder / "train.sh").write_text("echo iter 1 loss 2; sleep 300 & wait\n")


@pytest.mark.parametrize(("launcher", "seeds"), [("sbatch", 1), ("submitit", 2)])
def test_a_job_that_dies_in_its_setup_is_explained(slurm_workspace: Workspace, launcher: str, seeds: int) -> None:
    workspace = slurm_workspace
    write(workspace, '["echo no license for this cluster", "exit 3"]', seeds)
    workspace.run("submit", "study.yaml", "--launcher", launcher, "--no-report")
    states = workspace.wait(lambda states: states["baseline"]["state"] == "lost")
    assert 'ended before the trainer started: "no license for this cluster"' in states["baseline"]["reason"]
    assert "no license" in workspace.run("logs", states["baseline"]["id"]).stdout


def test_kill_9_of_the_task_leaves_no_process(slurm_workspace: Workspace) -> None:
    workspace = slurm_workspace
    write(workspace)
    workspace.run("submit", "study.yaml", "--launcher", "sbatch", "--no-report")
    folder = workspace.wait(lambda states: states["baseline"]["iter"] >= 1) and workspace.run_folder("baseline")
    started = next(event for event in read_events(folder) if event["event"] == "started")
    words = ["ps", "-o", "ppid=", "-p", str(started["pid"])]
    task = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    os.kill(task, signal.SIGKILL)
    wait_for(lambda: not processes.born(started["pid"]))
    marks = f"ABLATRIX_RUN_DIR={folder}".encode()
    assert not [entry for entry in os.listdir("/proc") if entry.isdigit() and marks in environment(entry)]
    workspace.wait(lambda states: states["baseline"]["state"] == "lost")


def environment(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
