"""What sites do that must not stop a study: drained nodes, maintenance, later reservations, comments, no requeueing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.support.workspace import Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm-3")]


def scontrol(*words: str) -> None:
    done = subprocess.run(["scontrol", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"scontrol {' '.join(words)}: {done.stderr.strip()}")


@pytest.fixture
def drained(cluster: str) -> Iterator[None]:
    scontrol("update", "nodename=ALL", "state=drain", "reason=test")
    yield
    scontrol("update", "nodename=ALL", "state=resume")


@pytest.fixture
def later(cluster: str) -> Iterator[str]:
    """A reservation that begins in an hour."""
    name = "ablatrix_later"
    when = ("starttime=now+1hour", "duration=30", "nodes=ALL", "users=root")
    scontrol("create", "reservation", f"reservationname={name}", *when)
    yield name
    scontrol("delete", f"reservationname={name}")


def test_drained_nodes_are_a_warning(drained: None, slurm_workspace: Workspace) -> None:
    study = slurm_workspace.write_study()
    checked = slurm_workspace.run("check", study, "--launcher", "submitit")
    assert "the jobs will have to wait" in checked.stderr
    refused = slurm_workspace.run("check", study, "--launcher", "sbatch", "--set", "slurm.mem=999G", code=2)
    assert "node configuration is not available" in refused.stderr


def test_a_reservation_that_begins_later_is_a_warning(later: str, slurm_workspace: Workspace) -> None:
    study = slurm_workspace.write_study()
    words = ("check", study, "--launcher", "sbatch", "--set")
    checked = slurm_workspace.run(*words, f"slurm.extra={{reservation: {later}}}")
    assert "the jobs will have to wait" in checked.stderr
    refused = slurm_workspace.run(*words, "slurm.extra={reservation: nowhere}", code=2)
    assert "reservation is invalid" in refused.stderr


def test_options_of_a_site_reach_the_job(slurm_workspace: Workspace) -> None:
    """A comment with blanks, no requeueing, a switch; setup lines as conda and modules leave them."""
    section = """slurm: {time: "00:10:00", mem: 1GB, comment: project x, requeue: false,
        extra: {exclusive: true, nice: 5},
        setup: ["false", "export OLD=$PS1$CONDA_BACKUP_AR", "cd /", "unset PYTHONPATH"]}"""
    study = slurm_workspace.write_study()
    study.write_text(study.read_text().replace('slurm: {time: "00:10:00", mem: 1G}', section))
    slurm_workspace.run("submit", study, "--launcher", "submitit", "--only", "rope", "--no-report")
    states = slurm_workspace.wait(lambda states: states["rope"]["state"] == "done")
    shown = subprocess.run(
        ["scontrol", "show", "job", states["rope"]["job_id"]], capture_output=True, text=True, check=True
    )
    for text in ("Comment=project x ablatrix:", "Requeue=0", "Nice=5", "OverSubscribe=NO"):
        assert text in shown.stdout, shown.stdout
