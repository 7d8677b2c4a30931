"""The truth about a run where the queue does not tell: jobs that cannot be seen from here, and local processes."""

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import run_evidence, study_state
from ablatrix.orchestrator.store.study_dir import Study, StudyRun
from ablatrix.trainer.rundir import processes, run_files
from ablatrix.trainer.rundir.events import append_event, read_events
from ablatrix.trainer.rundir.files import append_line
from tests.support.slurm_answers import TOKEN, Cluster, job, now, queue_run


def set_age(run: StudyRun, seconds: float) -> None:
    """The run's events as they look when another host has written nothing for a while."""
    path = run.folder / run_files.EVENTS
    elsewhere = {"host": "node7", "born": "1 0a1b2c3d"}
    records = [{**event, **elsewhere, "time": event["time"] - seconds} for event in read_events(run.folder)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    os.utime(path, (time.time() - seconds,) * 2)


BLIND = {
    "no Slurm": "no Slurm on this machine",
    "private": "jobs of alice are not visible to you",
    "other cluster": "it was queued on cluster big, this machine belongs to small",
}


@pytest.mark.parametrize("case", list(BLIND))
def test_a_job_that_cannot_be_seen_from_here_is_judged_by_its_heartbeat(
    study: Study, run: StudyRun, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Never lost while it may live, never running when it has gone; nothing is recorded without knowledge."""
    monkeypatch.setattr(commands, "settings", lambda: {"ClusterName": "small", "PrivateData": "usage,jobs"})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    if case == "other cluster":
        monkeypatch.setattr(commands, "cluster_name", lambda: "big")
        monkeypatch.setenv("SLURM_CLUSTER_NAME", "big")
        monkeypatch.setenv("SLURM_JOB_ID", "5")
    scheduler = Scheduler(user="alice" if case == "private" else "")
    if case == "no Slurm":
        monkeypatch.setattr(commands, "available", lambda: False)
        cluster.down = True
    monkeypatch.setattr(commands, "queue", lambda user="": cluster.queue())

    def look() -> tuple[str, bool]:
        state = study_state.collect(study, scheduler)[0]
        assert BLIND[case] in state.reason
        return state.state, state.active

    queue_run(run)
    cluster.ended = job("COMPLETED") if case == "other cluster" else {}  # its id was given to another job here
    append_event(run.folder, "submitting", attempt=1, token=TOKEN)
    append_event(run.folder, "queued", launcher="sbatch", job_id="5_0", attempt=1, token=TOKEN)
    assert look() == ("queued", True)
    append_event(run.folder, "started", iter=0)
    assert look() == ("running", True)
    set_age(run, 900)
    assert look() == ("stopped", False)
    append_event(run.folder, "requeued")
    assert look() == ("stopped", True)
    assert "ended" not in [event["event"] for event in read_events(run.folder)]
    append_event(run.folder, "failed", reason="boom")
    assert study_state.collect(study, scheduler)[0].reason == "boom"


@pytest.mark.parametrize("private", ["none", "accounts,usage"])
def test_another_users_job_that_would_be_visible_is_lost_when_it_is_not(
    study: Study, run: StudyRun, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, private: str
) -> None:
    monkeypatch.setattr(commands, "settings", lambda: {"PrivateData": private})
    monkeypatch.setattr(commands, "queue", lambda user="": cluster.queue())
    queue_run(run)
    assert study_state.collect(study, Scheduler(user="alice"))[0].state == "lost"


def local_event(run: StudyRun, event: str, pid: int, **fields: Any) -> None:
    who = {"host": os.uname().nodename, "pid": pid, "born": processes.identity(pid)}
    record = {"event": event, "time": time.time(), **who, **fields}
    append_line(run.folder / run_files.EVENTS, json.dumps(record))


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_local_runs_are_judged_by_their_process(study: Study, run: StudyRun, dead_pid: int) -> None:
    local_event(run, "submitting", dead_pid, attempt=1, token=TOKEN)
    local_event(run, "queued", dead_pid, launcher="local", job_id="", attempt=1, token=TOKEN)
    assert now(study).state == "planned", "its submit is gone"
    local_event(run, "started", dead_pid, iter=0)
    assert now(study).state == "lost", "never running for a process that is gone"
    local_event(run, "stopped", dead_pid, iter=3)
    assert now(study).state == "stopped"


def test_a_living_local_process_is_running(study: Study, run: StudyRun) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            local_event(run, "started", process.pid, iter=0)
            assert now(study).state == "running"
        finally:
            process.kill()
    assert now(study).state == "lost"


@pytest.mark.parametrize("born", ["", "1 0a1b2c3d", "another boot"])
def test_another_process_that_was_given_the_id_of_a_trainer(study: Study, run: StudyRun, born: str) -> None:
    """After a reboot, or when the ids have gone round: not even `cancel` takes it for the trainer."""
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            ticks = processes.born(process.pid)
            local_event(run, "started", process.pid, iter=0, born=born.replace("another boot", f"{ticks} 0a1b2c3d"))
            assert now(study).state == "lost"
            assert run_evidence.find_owner(run) is None
            assert process.poll() is None
        finally:
            process.kill()


@pytest.mark.parametrize(("age", "state"), [(10, "running"), (7200, "lost")])
def test_on_another_host_the_heartbeat_tells(study: Study, run: StudyRun, age: int, state: str) -> None:
    record = {"event": "started", "time": time.time() - age, "host": "elsewhere", "pid": 1}
    append_line(run.folder / run_files.EVENTS, json.dumps(record))
    assert now(study).state == state


def test_a_machine_that_was_renamed_knows_its_processes(study: Study, run: StudyRun) -> None:
    """By DHCP, or from a short name to a full one; the last sign of the run may be old."""
    who = {"host": "its-old-name", "pid": os.getpid(), "born": processes.identity(os.getpid())}
    append_event(run.folder, "started", iter=0, **who)
    os.utime(run.folder / run_files.EVENTS, (1, time.time() - 600))
    assert now(study).state == "running"
