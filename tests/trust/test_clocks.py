"""Clocks that are off: no state, no claim and no wait depends on whether two hosts agree about the time."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.slurm import commands, job_parsing
from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import run_evidence, study_state
from ablatrix.orchestrator.store import study_dir, submit_attempts
from ablatrix.orchestrator.store.study_dir import Study, StudyRun
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import read_events
from tests.support.evidence import Cases, Tally
from tests.support.plans import FIVE, expand
from tests.support.workspace import Workspace

OFF = 600.0  # seconds
TOKEN = "0123456789abcdef"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_dir.create_study(tmp_path / "out" / "s", "s", tmp_path / "e.yaml", {}, expand(tmp_path, FIVE)[:1])


def written(run: StudyRun, *names: str, age: float, off: float, host: str, jump: float = 0.0, **queued: Any) -> None:
    """Events of a host whose clock is off by `off` seconds, and after the first one by `jump` more; `age` is true."""
    shown = time.time() - age + off
    about = {"attempt": 1, "token": TOKEN, "time": shown, "host": "login"}
    records = [{"event": "submitting", **about}, {"event": "queued", **about, **queued}]
    for number, name in enumerate(names):
        records.append({"event": name, "time": shown + jump * (number > 0), "host": host, "pid": 1})
    path = run.folder / run_files.EVENTS
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    os.utime(path, (time.time() - age,) * 2)


def clock_of(monkeypatch: pytest.MonkeyPatch, off: float) -> None:
    """This host's clock is off by so much; the file server's is not."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + off)


@pytest.mark.parametrize("launcher", ["local", "sbatch"])
@pytest.mark.parametrize("age", [0.0, 30.0, 100.0, 140.0, 700.0])
def test_states_do_not_depend_on_the_clocks(
    study: Study, monkeypatch: pytest.MonkeyPatch, launcher: str, age: float, tally: Tally
) -> None:
    """The last sign of life is `age` seconds old, written by a host with a wrong clock, read by another such host."""
    run = study.runs[0]
    assert submit_attempts.take(run.folder, 1)
    monkeypatch.setattr(commands, "available", lambda: True)
    monkeypatch.setattr(commands, "queue", dict)
    monkeypatch.setattr(commands, "ended_jobs", lambda ids: {"5": job_parsing.Job("5", "COMPLETED", exit_code="0:0")})
    within = run_evidence.HEARTBEAT_SECONDS if launcher == "local" else 60
    clocks = list(itertools.product((-OFF, 0.0, OFF), repeat=3))
    for ours, theirs, jump in clocks:
        about = {"off": theirs, "jump": jump, "host": "node7", "launcher": launcher, "job_id": "5"}
        written(run, "started", "heartbeat", age=age, **about)
        with monkeypatch.context() as patch:
            clock_of(patch, ours)
            found = study_state.collect(study)[0]
        assert found.state == ("running" if age < within else "lost"), (ours, about, found.reason)
    tally("states with clocks 10 minutes off, or jumping, equal the true ones", len(clocks), "0 wrong states")


@pytest.mark.parametrize("off", [-OFF, 0.0, OFF])
def test_claims_age_by_the_file_servers_clock(study: Study, monkeypatch: pytest.MonkeyPatch, off: float) -> None:
    folder = study.runs[0].folder
    clock_of(monkeypatch, off)
    for age, void in ((submit_attempts.VOID_AFTER - 20, False), (submit_attempts.VOID_AFTER + 20, True)):
        submit_attempts.take(folder, 1)
        when = (folder / submit_attempts.FOLDER).stat().st_mtime - age
        os.utime(folder / submit_attempts.FOLDER / "1", (when, when))
        assert submit_attempts.is_void(folder, 1) is void
    assert not list((folder / submit_attempts.FOLDER).glob(".now*"))


@pytest.mark.parametrize("jump", [-OFF, OFF])
def test_a_jump_of_the_clock_does_not_change_how_often_slurm_is_asked(
    monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    asked: list[int] = []
    now = [1000.0]

    def silent() -> dict[str, job_parsing.Job]:
        asked.append(1)
        raise commands.ControllerError("squeue did not answer")

    monkeypatch.setattr(commands, "queue", silent)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    scheduler = Scheduler()
    scheduler.refresh()
    clock_of(monkeypatch, jump)
    scheduler.refresh()
    assert len(asked) == 1, "it keeps quiet for a while"
    now[0] += 6
    scheduler.refresh()
    assert len(asked) == 2


def test_records_that_were_copied_are_no_sign_of_life(study: Study) -> None:
    """A study of last week, copied here a moment ago: new files, old events."""
    run = study.runs[0]
    written(run, "started", age=7 * 86400, off=0.0, host="node7", launcher="local", job_id="")
    os.utime(run.folder / run_files.EVENTS)
    assert study_state.collect(study)[0].state == "lost"


SHIFTED = """\
import os, time
real, begun = time.time, time.monotonic()
def shifted():
    return real() + float(os.environ["ABLATRIX_TEST_CLOCK"]) * (1 if time.monotonic() - begun < 1 else -1)
time.time = shifted
"""


def test_a_study_on_hosts_whose_clocks_jump(workspace: Workspace, cases: Cases, tally: Tally) -> None:
    """All its processes are 10 minutes off and, a second after their start, as much the other way."""
    extra = "design: [baseline]\n"
    workspace.write_study("study", iters=10, extra=extra)
    workspace.run("submit", "study.yaml", "--launcher", "local")
    shim = workspace.folder / "shim"
    shim.mkdir()
    (shim / "sitecustomize.py").write_text(SHIFTED)
    path = f"{shim}{os.pathsep}{workspace.env()['PYTHONPATH']}"
    signs = [1, -1][: cases(1, 2)]
    for sign in signs:
        name = f"off{sign + 1}"
        workspace.write_study(name, iters=10, extra=extra)
        workspace.environment = {"PYTHONPATH": path, "ABLATRIX_TEST_CLOCK": str(sign * OFF)}
        workspace.run("submit", f"{name}.yaml", "--launcher", "local")
        workspace.environment = {}
        assert {state["state"] for state in workspace.states(name).values()} == {"done"}
        events = read_events(workspace.run_folder("baseline", name))
        assert any(abs(event["time"] - time.time()) > OFF / 2 for event in events), "the clock was right"
        summary = json.loads((workspace.run_folder("baseline", name) / run_files.SUMMARY).read_text())
        assert 0 < summary["seconds"] < OFF / 2
        assert workspace.loss("baseline", name) == workspace.loss("baseline")
    tally("a study trained while its clocks jump by 20 minutes equals an undisturbed one", len(signs), "all rows equal")
