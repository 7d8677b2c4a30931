"""Local runs that are forked from a process with torch loaded: the same run as one that starts Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablatrix.orchestrator.job.warm_parent import Forked
from ablatrix.orchestrator.slurm.batch import Batch
from ablatrix.orchestrator.store import job_command, study_dir, submit_attempts
from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.submit import forked_jobs, preflight
from ablatrix.orchestrator.submit.forked_jobs import WarmParent
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import read_events
from tests.support.batches import make_batch
from tests.support.waiting import wait_for
from tests.support.workspace import Workspace, without_clock

needs_pidfd = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux only")

DRAW = """
import random
import numpy
import torch

class Own:
    def on_train_start(self, trainer):
        print("DRAWN", random.random(), numpy.random.rand(), torch.initial_seed())
"""


@needs_pidfd
def test_a_forked_run_is_the_same_as_one_that_starts_python(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.folder)
    Path("own.py").write_text(DRAW)
    Path("sitecustomize.py").write_text("print('welcome')")  # before every answer of the process that forks
    loaded = load_experiment(workspace.write_study(iters=12, ckpt=6), ["callbacks.custom=own:Own"])
    runs = matrix.runs(loaded, preflight.vocabulary)[:2]
    plain, forked = (
        study_dir.create_study(Path("out", name), "study", Path("study.yaml"), {}, runs).runs for name in "ab"
    )
    environment = {
        **workspace.env(),
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": f"{workspace.env()['PYTHONPATH']}:{workspace.folder}",
    }
    warm = WarmParent(environment, Path("log.out"))
    for run in (*plain, *forked):
        submit_attempts.take(run.folder, 1)
        if run in plain:
            command = [sys.executable, *job_command.task_command([(run.folder, 1)])[1:]]
            subprocess.run(command, env=environment, check=True)
        else:
            job = warm.start(f"{run.folder}:1")
            assert job is not None
            wait_for(lambda job=job: job.poll() == 0)  # type: ignore[misc]
    warm.stop()
    for one, other in zip(plain, forked, strict=True):
        assert without_clock(one.folder) == without_clock(other.folder)
        arguments = (one.folder / run_files.ARGS).read_text()
        assert (other.folder / run_files.ARGS).read_text() == arguments.replace("out/a/", "out/b/")
        assert [event["event"] for event in read_events(other.folder)][-1] == "finished"
        assert "finished after iter 12" in (other.folder / run_files.JOB_OUT).read_text()
        peaks = [json.loads((run.folder / run_files.SUMMARY).read_text())["peak_memory_bytes"] for run in (one, other)]
        assert peaks[1] == pytest.approx(peaks[0], rel=0.05)
    outputs = "".join((run.folder / run_files.JOB_OUT).read_text() for run in forked)
    drawn = [line.split()[1:] for line in outputs.splitlines() if line.startswith("DRAWN")]
    assert len(drawn) == 2 and len({*drawn[0], *drawn[1]}) == 6, "without a seed each draws other numbers"


@needs_pidfd
@pytest.mark.slow
def test_jobs_outlive_the_process_that_forked_them(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM stops a run with a checkpoint, also when that process was killed; no more jobs can be forked then."""
    monkeypatch.chdir(workspace.folder)
    loaded = load_experiment(workspace.write_study(iters=5000, ckpt=1000))
    (run, other) = study_dir.create_study(
        Path("out/study"), "study", Path("study.yaml"), {}, matrix.runs(loaded, preflight.vocabulary)[:2]
    ).runs
    submit_attempts.take(run.folder, 1)
    warm = WarmParent({**workspace.env(), "OMP_NUM_THREADS": "1"}, Path("log.out"))
    job = warm.start(f"{run.folder}:1")
    assert job is not None
    wait_for(lambda: any(event["event"] == "started" for event in read_events(run.folder)))
    warm._process.kill()
    warm._process.wait()
    assert warm.start(f"{other.folder}:1") is None
    assert job.poll() is None
    job.terminate()
    wait_for(lambda: job.poll() == 0)
    job.terminate()  # nothing happens
    assert [event["event"] for event in read_events(run.folder)][-1] == "stopped"
    warm.stop()


@needs_pidfd
def test_a_process_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked_jobs, "STOP_SECONDS", 0.1)
    environment = {**os.environ, "PYTHONPATH": str(code_root())}
    asked, idle = (WarmParent(environment, tmp_path / "log.out") for _ in range(2))
    for warm in (asked, idle):
        warm._process.send_signal(signal.SIGSTOP)
    assert asked.start("run:1", iter((False, True)).__next__) is None
    for warm in (asked, idle):
        warm.stop()
        assert warm._process.returncode == -signal.SIGKILL


def test_exit_codes_and_signals_of_a_fork() -> None:
    ended, running = (Forked(pid) for pid in (_fork(7), _fork(None)))
    assert ended.wait() == 7
    assert ended.poll() == 7
    ended.send_signal(signal.SIGTERM)  # nothing happens
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    assert running.wait() == -signal.SIGTERM


def _fork(code: int | None) -> int:
    """Return the id of a child that exits with a code, or waits for a signal."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if code is None:
            time.sleep(60)
        os._exit(code or 0)
    return pid


def test_only_more_runs_than_slots_are_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def batch(settings: SlurmSettings | None = None) -> Batch:
        return make_batch(tmp_path, settings or SlurmSettings(), runs=3)

    assert forked_jobs.pays(batch(), 2) == hasattr(os, "pidfd_open")
    assert not forked_jobs.pays(batch(), 3)
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert not forked_jobs.pays(batch(), 2)
