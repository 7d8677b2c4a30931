"""A network file system shows what another host has written only later: nothing is lost that has merely not been seen.

Time is virtual: the launcher's view of a run is what has been written more than so many seconds ago.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.job import task
from ablatrix.orchestrator.slurm import commands, job_parsing
from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.store import shared_fs, study_dir, submit_attempts
from ablatrix.orchestrator.store.study_dir import Study, StudyRun
from ablatrix.trainer.rundir import run_files
from tests.support.evidence import Tally
from tests.support.plans import FIVE, expand

TOKEN = "0123456789abcdef"
QUEUED = {"launcher": "sbatch", "job_id": "5", "attempt": 1, "token": TOKEN}


class View:
    """What one host sees of a run, `now` seconds after the job has begun on another one."""

    def __init__(self, run: StudyRun, written: list[tuple[float, str, dict[str, Any]]]) -> None:
        self.run, self.written = run, written
        self.begin = time.time() - 10_000
        self.now = 0.0

    def clock(self, folder: Path) -> float:
        return self.begin + self.now

    def show(self, now: float, delay: float) -> None:
        """The files as they are seen at `now`, each event and the summary `delay` seconds late."""
        self.now = now
        seen = [(-100.0, "submitting", QUEUED), (-99.0, "queued", QUEUED)]
        seen += [(when, name, fields) for when, name, fields in self.written if when + delay <= now]
        path = self.run.folder / run_files.EVENTS
        records = [{"event": name, "time": self.begin + w, "host": "n7", **f} for w, name, f in seen if name != "done"]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        os.utime(path, (self.begin + seen[-1][0],) * 2)
        if any(name == "done" for _, name, _ in seen):
            (self.run.folder / run_files.SUMMARY).write_text('{"iters": 10}')

    def settle(self) -> None:
        """What was made here just now, was made at `now`."""
        for path in (self.run.folder / submit_attempts.FOLDER).glob(".gone-*"):
            if path.stat().st_mtime > self.begin + 5000:
                os.utime(path, (self.begin + self.now,) * 2)


ENDINGS: dict[str, tuple[list[tuple[str, dict[str, Any]]], job_parsing.Job]] = {
    "done": ([("done", {}), ("finished", {})], job_parsing.Job("5", "COMPLETED", exit_code="0:0")),
    "failed": ([("failed", {"reason": "exit code 1: boom"})], job_parsing.Job("5", "FAILED", exit_code="1:0")),
    "stopped": ([("stopped", {"iter": 4})], job_parsing.Job("5", "COMPLETED", exit_code="0:0")),
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv(shared_fs.VARIABLE, "60")
    monkeypatch.setattr(commands, "available", lambda: True)
    monkeypatch.setattr(commands, "queue", dict)
    return study_dir.create_study(tmp_path / "out" / "s", "s", tmp_path / "e.yaml", {}, expand(tmp_path, FIVE)[:1])


@pytest.mark.parametrize("delay", [0.0, 25.0, 59.0])
@pytest.mark.parametrize("slurm_knows_it", [True, False])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_run_that_ended_on_another_host_is_never_lost(
    study: Study, monkeypatch: pytest.MonkeyPatch, ending: str, slurm_knows_it: bool, delay: float, tally: Tally
) -> None:
    """Its job leaves the queue with its last file, which is visible here `delay` seconds later."""
    end = 40.0
    marks, job = ENDINGS[ending]
    submit_attempts.take(study.runs[0].folder, 1)
    beats: list[tuple[float, str, dict[str, Any]]] = [(1.0, "started", {"iter": 0}), (30.0, "heartbeat", {})]
    view = View(study.runs[0], beats + [(end, name, fields) for name, fields in marks])
    monkeypatch.setattr(commands, "ended_jobs", lambda ids: {"5": job} if slurm_knows_it else {})
    monkeypatch.setattr(shared_fs, "now", view.clock)
    for now in sorted({end + 0.5, end + delay / 2 + 0.5, end + delay + 0.5, end + 70}):
        view.show(now, delay)
        state = study_state.collect(study)[0]
        view.settle()
        assert state.state == ("running" if now < end + delay else ending), (now, state.reason)
    tally("a run that ended where files are visible up to 60 s late is never lost", cases=4, detail="0 wrong states")


def test_a_run_that_left_nothing_is_lost_after_that(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    run = study.runs[0]
    submit_attempts.take(run.folder, 1)
    view = View(run, [(1.0, "started", {"iter": 0})])
    monkeypatch.setattr(shared_fs, "now", view.clock)
    monkeypatch.setattr(commands, "ended_jobs", lambda ids: {"5": job_parsing.Job("5", "FAILED", exit_code="0:9")})
    found = []
    for now in (300.0, 330.0, 359.0, 361.0):
        view.show(now, 0.0)
        found.append(study_state.collect(study)[0].state)
        view.settle()
    assert found == ["running", "running", "running", "lost"]


def test_a_summary_that_is_seen_after_the_event_that_tells_of_it(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    run = study.runs[0]
    submit_attempts.take(run.folder, 1)
    view = View(run, [(1.0, "started", {"iter": 0}), (300.0, "finished", {"iter": 10})])
    monkeypatch.setattr(shared_fs, "now", view.clock)
    found = []
    for now in (301.0, 359.0, 361.0):
        view.show(now, 0.0)
        found.append((study_state.collect(study)[0].state, study_state.collect(study)[0].reason))
    assert found[0] == found[1] == ("running", "finished; its summary.json is not visible here yet")
    assert found[2][0] == "lost" and "its summary.json no longer exists" in found[2][1]


def test_files_that_are_at_hand_are_not_waited_for(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(shared_fs.VARIABLE)
    monkeypatch.setattr(shared_fs, "file_system", lambda folder: "ext4")
    run = study.runs[0]
    submit_attempts.take(run.folder, 1)
    View(run, [(1.0, "started", {"iter": 0})]).show(300.0, 0.0)
    monkeypatch.setattr(commands, "ended_jobs", lambda ids: {"5": job_parsing.Job("5", "FAILED", exit_code="0:9")})
    assert study_state.collect(study)[0].state == "lost"


def test_kinds_of_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"
        "30 21 0:40 / /home rw shared:1 - nfs4 server:/home rw\n"
        "31 30 0:41 / /home/a\\040b rw - tmpfs none rw\n"
    )
    kinds = {
        path: shared_fs.file_system(Path(path), str(table)) for path in ("/x", "/home/me", "/home/a b/c", "/homes")
    }
    assert kinds == {"/x": "ext4", "/home/me": "nfs4", "/home/a b/c": "tmpfs", "/homes": "ext4"}
    assert shared_fs.file_system(tmp_path, str(tmp_path / "none")) == ""
    monkeypatch.delenv(shared_fs.VARIABLE, raising=False)
    for kind, seconds in (("nfs4", 60.0), ("lustre", 60.0), ("ext4", 0.0), ("", 0.0)):
        monkeypatch.setattr(shared_fs, "file_system", lambda folder, kind=kind: kind)
        assert shared_fs.visibility_delay(tmp_path) == seconds


def test_a_task_that_starts_before_its_files_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shared_fs.VARIABLE, "60")
    run = tmp_path / "run"

    def appear() -> None:
        time.sleep(0.3)
        run.mkdir()
        time.sleep(0.3)
        (run / run_files.CONFIG).write_text("{}")

    thread = threading.Thread(target=appear)
    thread.start()
    assert task.await_config(run) and (run / run_files.CONFIG).exists()
    thread.join()


def test_a_task_whose_folder_is_gone_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(shared_fs.VARIABLE, "0")
    assert task.main([f"{tmp_path / 'gone'}:1"]) == 1
    assert f"error: {tmp_path / 'gone'} does not exist (removed, purged or not mounted)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
