"""What people and Slurm do to jobs: the state shown is the true one, and the finished loss.csv is the same.

Here through submitit; what befalls jobs of sbatch stands together in test_without_accounting.py.
"""

from __future__ import annotations

import os
import signal

import pytest

from ablatrix.trainer.rundir.events import read_events
from tests.support.slurm_runs import Started, slurm
from tests.support.workspace import Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm-1")]


def test_requeue_of_one_array_task(slurm_workspace: Workspace, undisturbed: list[list[str]]) -> None:
    """Slurm's warning before the time limit (sent by hand, so that the test need not wait for it)."""
    started = Started(slurm_workspace, "submitit", array=True)
    assert started.state()["state"] == "running"
    slurm("scancel", "--signal=USR2", started.job)
    stopped = started.until(lambda state: state["state"] == "stopped" or "resumed" in started.events())
    assert stopped["state"] != "lost"
    started.finish(undisturbed)
    rope = read_events(slurm_workspace.run_folder("rope"))
    assert "signal" not in [event["event"] for event in rope], "the whole array was signalled"


def test_scontrol_requeue(slurm_workspace: Workspace, undisturbed: list[list[str]]) -> None:
    started = Started(slurm_workspace)
    slurm("scontrol", "requeue", started.job)
    started.until(lambda state: "resumed" in started.events() and state["state"] in ("running", "done"))
    started.finish(undisturbed)


def test_scancel_is_cancelled_and_retry_goes_on(slurm_workspace: Workspace, undisturbed: list[list[str]]) -> None:
    started = Started(slurm_workspace, "submitit", array=True)
    slurm("scancel", started.job)
    state = started.until(lambda state: state["state"] not in ("running", "queued"))
    assert state["state"] == "cancelled"
    assert slurm_workspace.states()["rope"]["state"] in ("running", "queued", "done"), "the rest of the array lives"
    assert "1 failed, lost or cancelled; --retry reruns them" in slurm_workspace.run(*started.words, code=None).stdout
    assert started.state()["state"] == "cancelled"
    slurm_workspace.run(*started.words, "--retry")
    started.finish(undisturbed)


def test_cancel_verb_takes_back_the_whole_array(slurm_workspace: Workspace) -> None:
    started = Started(slurm_workspace, array=True)
    slurm_workspace.run("cancel", "--all", "--yes")
    states = slurm_workspace.wait(lambda states: not any(s["state"] in ("running", "queued") for s in states.values()))
    assert states["baseline"]["state"] == states["rope"]["state"] == "cancelled"
    assert not slurm("squeue", "--noheader", "--job", started.job.partition("_")[0]).strip()


def test_preemption(slurm_workspace: Workspace, undisturbed: list[list[str]]) -> None:
    """A job of the partition `main` takes the nodes from one of `scavenge`."""
    started = Started(slurm_workspace, slurm_settings='partition: scavenge, signal_seconds: 10, time: "00:10:00"')
    nodes = slurm("sinfo", "--noheader", "-N", "-p", "main", "-o", "%N").split()
    wrap = ["sbatch", "--parsable", "--partition=main", f"--nodes={len(nodes)}", "--exclusive", "--time=5"]
    blocker = slurm(*wrap, "--wrap=sleep 20").strip()
    try:
        preempted = started.until(lambda state: state["state"] != "running")
        assert preempted["state"] == "stopped", preempted
        assert preempted["requeued"]
    finally:
        slurm("scancel", blocker)
    started.finish(undisturbed)


def test_time_limit(slurm_workspace: Workspace) -> None:
    """A limit of one minute that the run cannot keep: warned by Slurm, requeued, and going on where it was."""
    study = slurm_workspace.write_study(iters=60, held=True)
    study.write_text(study.read_text().replace('time: "00:10:00"', 'time: "00:01:00", signal_seconds: 40'))
    slurm_workspace.run("submit", study, "--only", "baseline", "--no-report")
    folder = slurm_workspace.run_folder("baseline")

    def names() -> list[str]:
        return [event["event"] for event in read_events(folder)]

    slurm_workspace.wait(lambda states: "resumed" in names())
    trained = names()[names().index("started") :]
    assert trained[: trained.index("resumed")].count("requeued") == 1
    events = read_events(folder)
    stopped = next(event for event in events if event["event"] == "stopped")
    resumed = next(event for event in events if event["event"] == "resumed")
    assert resumed["iter"] == stopped["iter"] > 0


def test_kill_of_the_trainer(slurm_workspace: Workspace, undisturbed: list[list[str]]) -> None:
    started = Started(slurm_workspace, "submitit")
    os.kill(started.trainer_pid(), signal.SIGKILL)
    state = started.until(lambda state: state["state"] != "running")
    assert state["state"] == "failed"
    assert "killed by SIGKILL" in state["reason"]
    slurm_workspace.run(*started.words, "--retry", code=None)
    started.finish(undisturbed)
