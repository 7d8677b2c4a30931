"""The same runs through both Slurm launchers: one array each, the same results as on this machine."""

import json
import subprocess
from pathlib import Path

import pytest

from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import read_events
from tests.support.checkout import copy_checkout
from tests.support.slurm_runs import nodes_taken
from tests.support.waiting import wait_for
from tests.support.workspace import Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm-2")]


def test_arrays_of_both_launchers_equal_the_local_runs(slurm_workspace: Workspace) -> None:
    workspace, cells = slurm_workspace, ("baseline", "rope", "all_on")
    only = [word for cell in cells for word in ("--only", cell)]
    for launcher in ("sbatch", "submitit"):
        study = workspace.write_study(f"by-{launcher}")
        assert "3 to run" in workspace.run("submit", study, "--launcher", launcher, "--no-report", *only).stdout
    workspace.run("submit", workspace.write_study("by-local"), "--launcher", "local", *only)
    for launcher in ("sbatch", "submitit"):
        states = workspace.wait(lambda states: all(states[c]["state"] == "done" for c in cells), f"by-{launcher}")
        jobs = [states[cell]["job_id"] for cell in cells]
        base = jobs[0].partition("_")[0]
        assert sorted(jobs) == [f"{base}_{index}" for index in range(3)], "not one array"
        for cell in cells:
            assert workspace.loss(cell, f"by-{launcher}") == workspace.loss(cell, "by-local"), (launcher, cell)
    scripts = list((workspace.folder / "out/by-sbatch/logs").glob("*.sbatch"))
    assert len(scripts) == 1


def test_a_second_submit_queues_nothing(slurm_workspace: Workspace) -> None:
    study = slurm_workspace.write_study(iters=60, held=True)
    words = ("submit", study, "--only", "rope", "--only", "swiglu", "--no-report")
    slurm_workspace.run(*words)
    assert "2 queued or running already" in slurm_workspace.run(*words).stdout
    slurm_workspace.wait(lambda states: states["rope"]["iter"] > 0 and states["swiglu"]["iter"] > 0)
    assert "2 queued or running already" in slurm_workspace.run(*words).stdout
    for cell in ("rope", "swiglu"):
        events = [event["event"] for event in read_events(slurm_workspace.run_folder(cell))]
        assert events.count("queued") == events.count("started") == 1


def test_several_runs_in_a_job_and_the_report_behind_them(slurm_workspace: Workspace) -> None:
    text = slurm_workspace.write_study().read_text().replace("mem: 1G", "mem: 4G, runs_per_job: 3")
    (slurm_workspace.folder / "study.yaml").write_text(text)
    slurm_workspace.run("submit", "study.yaml", "--launcher", "sbatch")
    states = slurm_workspace.wait(lambda states: all(state["state"] == "done" for state in states.values()))
    assert len({state["job_id"] for state in states.values()}) == 3
    report = slurm_workspace.folder / "out/study/report/report.html"
    wait_for(report.exists)


def test_the_plan_shows_the_script_that_is_submitted(slurm_workspace: Workspace) -> None:
    study = slurm_workspace.write_study()
    shown = slurm_workspace.run("plan", study, "--sbatch", "--launcher", "sbatch").stdout
    slurm_workspace.run("submit", study, "--launcher", "sbatch", "--no-report")
    (script,) = (slurm_workspace.folder / "out/study/logs").glob("*.sbatch")
    code = json.loads((slurm_workspace.run_folder("rope") / run_files.PROVENANCE).read_text())["code_snapshot"]
    assert shown.strip() == script.read_text().replace(script.stem, "TOKEN").replace(code, "CODE_SNAPSHOT").strip()
    subprocess.run(["bash", "-n", script], check=True)


def test_resources_that_the_cluster_lacks_are_refused_before_anything_is_made(slurm_workspace: Workspace) -> None:
    study = slurm_workspace.write_study()
    refused = slurm_workspace.run("submit", study, "--set", "slurm.partition=nowhere", code=2)
    assert "nowhere" in refused.stderr or "partition" in refused.stderr
    assert not Path(slurm_workspace.folder / "out").exists()


def test_code_edited_after_submit_does_not_change_a_queued_run(slurm_workspace: Workspace) -> None:
    """The checkout that a study was submitted from is broken while its run waits."""
    workspace = slurm_workspace
    checkout = workspace.folder / "checkout"
    copy_checkout(checkout)
    workspace.environment = {"PYTHONPATH": str(checkout)}
    with nodes_taken(nodes=3):
        study = workspace.write_study()
        workspace.run("submit", study, "--launcher", "submitit", "--only", "rope", "--no-report")
        assert workspace.states()["rope"]["state"] == "queued"
        for name in ("trainer/__main__.py", "trainer/loop.py", "orchestrator/job/task.py"):
            (checkout / name).write_text("raise SystemExit(3)\n")
    workspace.environment = {}
    workspace.wait(lambda states: states["rope"]["state"] == "done")


def test_an_array_keeps_to_its_limit(slurm_workspace: Workspace) -> None:
    study = slurm_workspace.write_study(iters=60, held=True)
    study.write_text(study.read_text().replace("slurm: {", "slurm: {max_parallel: 2, "))
    slurm_workspace.run("submit", study, "--launcher", "submitit", "--no-report")
    slurm_workspace.wait(lambda states: sum(state["state"] == "running" for state in states.values()) == 2)
    for _ in range(5):
        states = slurm_workspace.states()
        assert sum(state["state"] == "running" for state in states.values()) <= 2
