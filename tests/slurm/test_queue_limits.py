"""A study larger than the submit limit of the QOS: it ends, with its report, and nobody has to submit again."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.support.waiting import PATIENCE, wait_for
from tests.support.workspace import Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm-3")]

LIMIT = 4


def set_limit(jobs: int) -> None:
    command = ["sacctmgr", "--immediate", "modify", "qos", "normal", "set", f"MaxSubmitJobsPerUser={jobs}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        pytest.skip(f"this cluster's QOS cannot be changed: {done.stderr.strip()}")
    time.sleep(2)  # slurmdbd tells slurmctld


@pytest.fixture
def limited(slurm_workspace: Workspace) -> Iterator[Workspace]:
    if os.geteuid():
        pytest.skip("changing a QOS needs root")
    set_limit(LIMIT)
    yield slurm_workspace
    slurm_workspace.run("cancel", "--all", "--yes", code=None)
    set_limit(-1)


def most_jobs_at_once() -> int:
    text = subprocess.run(
        ["squeue", "-h", "--array", "-o", "%i"], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    return len(text.stdout.splitlines())


def test_waves_go_on_by_themselves(limited: Workspace) -> None:
    study = limited.write_study(iters=20)
    said = limited.run("submit", study, "--launcher", "sbatch").stdout
    assert f"MaxSubmitJobsPerUser of QOS normal={LIMIT}" in said
    assert most_jobs_at_once() <= LIMIT
    assert "wait for room in the queue: job" in limited.run("status").stdout
    limited.wait(lambda states: all(state["state"] == "done" for state in states.values()))
    report = limited.folder / "out" / "study" / "report" / "report.md"
    wait_for(report.exists)  # of the report job behind the last wave


def test_cancel_takes_the_follow_up_too(limited: Workspace) -> None:
    study = limited.write_study(iters=60, held=True)
    limited.run("submit", study, "--launcher", "sbatch", "--set", "seeds=3")
    limited.run("cancel", "--all", "--yes")
    text = subprocess.run(
        ["squeue", "-h", "-t", "PD", "-o", "%j"], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert text.stdout == ""
    assert "wait for room" not in limited.run("status").stdout
