"""What clusters do to jobs: after each blow the state shown is the true one, and the finished loss.csv is the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ablatrix.trainer.rundir.events import read_events
from tests.support.workspace import Workspace

pytestmark = pytest.mark.slurm

ITERS = 1500  # some seconds: long enough to be hit
States = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, offline_cache: Path, corpus: Path) -> list[list[str]]:
    """The baseline's loss.csv from a run that nobody touched."""
    workspace = Workspace(tmp_path_factory.mktemp("undisturbed"), corpus, offline_cache)
    workspace.run("submit", workspace.write_study(iters=ITERS, ckpt=100), "--launcher", "local", "--only", "baseline")
    return workspace.loss("baseline")


@pytest.fixture(params=["sbatch", "submitit"])
def launcher(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def slurm(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


class Started:
    """A run of the baseline on the cluster, training; with `array` as the first task of two."""

    def __init__(
        self,
        workspace: Workspace,
        launcher: str = "sbatch",
        slurm_settings: str = "",
        array: bool = False,
        iters: int = ITERS,
    ) -> None:
        self.workspace = workspace
        self.iters = iters
        self.study = workspace.write_study(iters=iters, ckpt=100)
        if slurm_settings:
            self.study.write_text(self.study.read_text().replace('time: "00:10:00"', slurm_settings))
        cells = ("baseline", "rope") if array else ("baseline",)
        only = [word for cell in cells for word in ("--only", cell)]
        self.words = ("submit", self.study, "--launcher", launcher, *only, "--no-report")
        workspace.run(*self.words)
        self.after_step(20)
        self.job = workspace.states()["baseline"]["job_id"]

    def after_step(self, step: int) -> None:
        self.workspace.wait(lambda states: states["baseline"]["iter"] >= step)

    def state(self) -> dict[str, Any]:
        return self.workspace.states()["baseline"]

    def until(self, good: Callable[[dict[str, Any]], bool], seconds: float = 180) -> dict[str, Any]:
        found: States = self.workspace.wait(lambda states: good(states["baseline"]), seconds=seconds)
        return found["baseline"]

    def events(self) -> list[str]:
        return [event["event"] for event in read_events(self.workspace.run_folder("baseline"))]

    def trainer_pid(self) -> int:
        events = read_events(self.workspace.run_folder("baseline"))
        return int([e for e in events if e["event"] in ("started", "resumed")][-1]["pid"])

    def finish(self, undisturbed: list[list[str]], resumed: bool = True) -> None:
        self.until(lambda state: state["state"] == "done")
        rows = self.workspace.loss("baseline")
        assert (
            rows[: len(undisturbed)] == undisturbed
        )  # at a constant learning rate a longer run begins like a short one
        steps = [int(row[0]) for row in rows[1:]]
        assert steps == sorted(set(steps))
        assert steps[-1] == self.iters
        assert ("resumed" in self.events()) is resumed
        assert self.events().count("finished") == 1


def test_requeue_of_one_array_task(slurm_workspace: Workspace, launcher: str, undisturbed: list[list[str]]) -> None:
    """Slurm's warning before the time limit (sent by hand, so that the test need not wait for it)."""
    started = Started(slurm_workspace, launcher, array=True)
    assert started.state()["state"] == "running"
    slurm("scancel", "--signal=USR2", started.job)
    stopped = started.until(lambda state: state["state"] == "stopped" or "resumed" in started.events())
    assert stopped["state"] != "lost"
    started.finish(undisturbed)
    rope = read_events(slurm_workspace.run_folder("rope"))
    assert "signal" not in [event["event"] for event in rope], "the whole array was signalled"


def test_scontrol_requeue(slurm_workspace: Workspace, undisturbed: list[list[str]]) -> None:
    started = Started(slurm_workspace)
    started.after_step(120)
    slurm("scontrol", "requeue", started.job)
    started.until(lambda state: "resumed" in started.events() and state["state"] in ("running", "done"))
    started.finish(undisturbed)


def test_scancel_is_cancelled_and_retry_goes_on(
    slurm_workspace: Workspace, launcher: str, undisturbed: list[list[str]]
) -> None:
    started = Started(slurm_workspace, launcher, array=True)
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
    started = Started(
        slurm_workspace, slurm_settings='partition: scavenge, signal_seconds: 10, time: "00:10:00"', iters=4000
    )
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


@pytest.mark.slow
def test_time_limit(slurm_workspace: Workspace) -> None:
    """A limit of one minute that the run cannot keep: warned by Slurm, requeued, and going on where it was."""
    study = slurm_workspace.write_study(iters=1_000_000, ckpt=1000)
    study.write_text(study.read_text().replace('time: "00:10:00"', 'time: "00:01:00", signal_seconds: 40'))
    slurm_workspace.run("submit", study, "--only", "baseline", "--no-report")
    folder = slurm_workspace.run_folder("baseline")

    def names() -> list[str]:
        return [event["event"] for event in read_events(folder)]

    slurm_workspace.wait(lambda states: "resumed" in names(), seconds=200)
    trained = names()[names().index("started") :]
    assert trained[: trained.index("resumed")].count("requeued") == 1
    events = read_events(folder)
    stopped = next(event for event in events if event["event"] == "stopped")
    resumed = next(event for event in events if event["event"] == "resumed")
    assert resumed["iter"] == stopped["iter"] > 0


def test_kill_of_the_trainer(slurm_workspace: Workspace, launcher: str, undisturbed: list[list[str]]) -> None:
    started = Started(slurm_workspace, launcher)
    started.after_step(120)
    os.kill(started.trainer_pid(), signal.SIGKILL)
    state = started.until(lambda state: state["state"] != "running")
    assert state["state"] == "failed"
    assert "killed by SIGKILL" in state["reason"]
    slurm_workspace.run(*started.words, "--retry", code=None)
    started.finish(undisturbed)


def test_missing_log_folder(slurm_workspace: Workspace, undisturbed: list[list[str]]) -> None:
    study = slurm_workspace.write_study(iters=ITERS, ckpt=100)
    blocker = slurm("sbatch", "--parsable", "--exclusive", "--nodes=3", "--time=5", "--wrap=sleep 300").strip()
    words = ("submit", study, "--only", "baseline", "--no-report")
    try:
        slurm_workspace.run(*words)
        assert slurm_workspace.states()["baseline"]["state"] == "queued"
        shutil.rmtree(slurm_workspace.folder / "out" / "study" / "logs")
    finally:
        slurm("scancel", blocker)
    states = slurm_workspace.wait(lambda states: states["baseline"]["state"] not in ("queued", "running"))
    assert states["baseline"]["state"] == "lost"
    assert "log: its folder is missing" in states["baseline"]["reason"]
    slurm_workspace.run(*words, "--retry")
    slurm_workspace.wait(lambda states: states["baseline"]["state"] == "done")
    assert slurm_workspace.loss("baseline") == undisturbed


@pytest.fixture
def restored(cluster: str) -> Iterator[str]:
    """For tests that break daemons: brings them back."""
    yield cluster
    subprocess.run([cluster, "up"], check=True, timeout=120)


def test_loss_of_a_node(slurm_workspace: Workspace, restored: str, undisturbed: list[list[str]]) -> None:
    started = Started(slurm_workspace)
    started.after_step(120)
    subprocess.run([restored, "fail", started.state()["node"]], check=True, timeout=60)
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
