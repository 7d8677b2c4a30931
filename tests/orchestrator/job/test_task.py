"""What runs inside a job: signals at any moment, one job per attempt, requeues that end."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablatrix.orchestrator.job import task
from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.store import code_snapshot, job_command, provenance, study_dir, submit_attempts
from ablatrix.orchestrator.store.study_dir import StudyRun
from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.submit import preflight
from ablatrix.trainer.rundir import processes, run_files
from ablatrix.trainer.rundir.events import read_events
from tests.support.fake_slurm import FakeSlurm
from tests.support.waiting import PATIENCE, wait_for
from tests.support.workspace import Workspace

SCONTROL = """#!/bin/sh
echo "$@" >> {log}
exit {code}
"""


@pytest.fixture
def run(workspace: Workspace) -> StudyRun:
    """A claimed run that trains for a while."""
    loaded = load_experiment(workspace.write_study(iters=5000, ckpt=1000))
    runs = matrix.runs(loaded, preflight.vocabulary)[:1]
    study = study_dir.create_study(workspace.folder / "out" / "study", "study", Path("study.yaml"), {}, runs)
    submit_attempts.take(study.runs[0].folder, 1)
    return study.runs[0]


def start(
    workspace: Workspace, run: StudyRun, restarts: int = 0, code: int = 0, python: str = ""
) -> "subprocess.Popen[bytes]":
    """The task as Slurm starts it, with a scontrol that writes down what it was asked.

    Both are forked (`tests.support.forked_python`); use another `python` to send a signal through them.
    """
    scontrol = workspace.folder / "bin" / "scontrol"
    scontrol.parent.mkdir(exist_ok=True)
    scontrol.write_text(SCONTROL.format(log=workspace.folder / "asked", code=code))
    scontrol.chmod(0o755)
    path = f"{scontrol.parent}:{os.environ['PATH']}"
    environment = {**workspace.env(), "PATH": path, "SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": str(restarts)}
    command = [python or workspace.python, *job_command.task_command([(run.folder, 1)])[1:]]
    return subprocess.Popen(command, cwd=workspace.folder, env=environment)


def asked(workspace: Workspace) -> str:
    return run_files.read_text(workspace.folder / "asked")


def events(run: StudyRun) -> list[str]:
    return [event["event"] for event in read_events(run.folder)]


@pytest.mark.parametrize("delay", [0.0, 0.2, 1.0])  # no trainer yet, importing, reading the corpus
def test_a_warning_during_start_up_is_a_requeue_not_a_failure(
    workspace: Workspace, run: StudyRun, delay: float
) -> None:
    process = start(workspace, run, python=sys.executable)
    try:
        wait_for(lambda: (run.folder / run_files.JOB_OUT).exists())
        time.sleep(delay)
        process.send_signal(signal.SIGUSR2)
        wait_for(lambda: "requeue 77" in asked(workspace))
        assert "failed" not in events(run), run_files.read_text(run.folder / run_files.JOB_OUT)
        assert events(run)[-1] == "requeued"
    finally:
        process.kill()
        process.wait()


def test_kill_9_of_the_task_ends_its_trainer(workspace: Workspace, run: StudyRun) -> None:
    process = start(workspace, run, python=sys.executable)
    wait_for(lambda: "started" in events(run))
    trainer = next(event["pid"] for event in read_events(run.folder) if event["event"] == "started")
    process.kill()
    process.wait()
    wait_for(lambda: not processes.born(trainer))


def test_a_child_whose_parent_died_before_it_could_be_bound_to_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)  # a parent that is not ours
    prepare = processes.end_with_parent()
    monkeypatch.undo()
    with subprocess.Popen(["sleep", "60"], preexec_fn=prepare) as child:
        assert child.wait(timeout=PATIENCE) == -signal.SIGKILL


def test_sigterm_is_not_answered_by_a_requeue(workspace: Workspace, run: StudyRun) -> None:
    process = start(workspace, run, python=sys.executable)
    wait_for(lambda: "started" in events(run))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE) == run_files.EXIT_STOPPED
    assert events(run)[-1] == "stopped"
    assert asked(workspace) == ""


def test_a_refused_requeue_leaves_the_run_stopped(workspace: Workspace, run: StudyRun) -> None:
    process = start(workspace, run, code=1, python=sys.executable)
    wait_for(lambda: "started" in events(run))
    process.send_signal(signal.SIGUSR2)
    assert process.wait(timeout=PATIENCE) == run_files.EXIT_STOPPED
    assert events(run)[-1] == "stopped"


def test_requeues_without_progress_end(workspace: Workspace, run: StudyRun) -> None:
    process = start(workspace, run, restarts=task.MOST_RESTARTS_WITHOUT_PROGRESS, python=sys.executable)
    wait_for(lambda: (run.folder / run_files.JOB_OUT).exists())
    process.send_signal(signal.SIGUSR2)
    process.wait(timeout=PATIENCE)
    assert events(run)[-1] == "failed"
    assert "time limit is too short" in read_events(run.folder)[-1]["reason"]


def test_a_second_job_of_the_same_attempt_leaves(workspace: Workspace, run: StudyRun) -> None:
    submit_attempts.start(run.folder, 1, "76")
    assert start(workspace, run).wait(timeout=PATIENCE) == 0
    assert "started" not in events(run)


def test_a_run_that_cannot_be_begun_does_not_end_the_others(workspace: Workspace, run: StudyRun) -> None:
    """As on a full disk; a file in the place of the folder stops root too."""
    broken = workspace.folder / "out" / "study" / "broken"
    broken.mkdir()
    (broken / submit_attempts.FOLDER).touch()
    command = [workspace.python, *job_command.task_command([(run.folder, 1), (broken, 1)])[1:]]
    with subprocess.Popen(command, cwd=workspace.folder, env=workspace.env(), stderr=subprocess.PIPE) as process:
        wait_for(lambda: read_events(broken) != [])
        wait_for(lambda: "started" in events(run) or process.poll() is not None)
        assert process.poll() is None, "the job has ended"
        (run.folder / run_files.STOP_REQUEST).touch()
        assert process.stderr and b"Traceback" not in process.stderr.read()
    assert events(run)[-1] == "stopped"
    (failed,) = read_events(broken)
    assert failed["event"] == "failed" and "in the way of a folder" in failed["reason"]


def test_a_failure_that_cannot_be_written_down_is_in_the_log_of_the_job(workspace: Workspace, run: StudyRun) -> None:
    (run.folder / run_files.EVENTS).mkdir()
    command = [workspace.python, *job_command.task_command([(run.folder, 1)])[1:]]
    ended = subprocess.run(
        command, cwd=workspace.folder, env=workspace.env(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "not written: Is a directory" in ended.stderr


def test_the_users_session_does_not_reach_our_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeSlurm(tmp_path / "slurm")
    (fake.bin / "squeue").write_text("#!/bin/sh\nexec env\n")
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    for name in ("SBATCH_TIMELIMIT", "SLURM_MEM_PER_CPU", "SQUEUE_PARTITION", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.setenv(name, "theirs")
    (conf := tmp_path / "slurm.conf").touch()
    monkeypatch.setenv("SLURM_CONF", str(conf))
    seen = commands.run_command(["squeue"])
    assert f"SLURM_CONF={conf}" in seen
    assert "theirs" not in seen
    with commands.own_environment():
        assert "SLURM_MEM_PER_CPU" not in os.environ
    assert os.environ["SLURM_MEM_PER_CPU"] == "theirs"


def test_stopped_by_its_file_until_the_next_submit(workspace: Workspace, run: StudyRun) -> None:
    """Neither the job nor, for its other runs, a requeue of it goes on with the run; only a submit does."""
    with start(workspace, run) as process:
        wait_for(lambda: (run.folder / run_files.LOSS).exists())
        (run.folder / run_files.STOP_REQUEST).touch()
        assert process.wait(PATIENCE) == run_files.EXIT_STOPPED
    assert events(run)[-1] == "stopped" and "requeued" not in events(run)
    assert not (run.folder / run_files.STOP_REQUEST).exists()
    with start(workspace, run, restarts=1) as process:
        assert process.wait(PATIENCE) == 0
    assert events(run)[-1] == "stopped"
    (state,) = workspace.states().values()
    assert state["state"] == "stopped" and "by the file stop; submit again" in state["reason"]


def test_code_that_was_not_promised_is_not_run(workspace: Workspace, run: StudyRun) -> None:
    """The snapshot was purged while the job waited, and another copy is on PYTHONPATH."""
    code = code_snapshot.take(workspace.folder / ".snapshots")
    provenance.write([run.folder], {"code_snapshot": code.name}, {})
    shutil.rmtree(code)
    other = workspace.env()["PYTHONPATH"]
    environment = {**workspace.env(), "PYTHONPATH": f"{code}:{other}", "SLURM_JOB_ID": "77"}
    done = subprocess.run(
        job_command.task_command([(run.folder, 1)]), cwd=workspace.folder, env=environment, check=False
    )
    assert done.returncode == 1
    last = read_events(run.folder)[-1]
    assert last["event"] == "failed" and f"Ablatrix is imported from {other}, not from" in last["reason"]
    assert code.name in last["reason"] and "started" not in events(run)


def test_the_task_imports_the_standard_library_only(workspace: Workspace) -> None:
    """It starts at once on every node, whatever file system its Python is on."""
    program = "import sys; before = set(sys.modules); import ablatrix.orchestrator.job.task; "
    program += "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    imported = subprocess.check_output([sys.executable, "-P", "-c", program], env=workspace.env(), text=True).split()
    assert set(imported) - sys.stdlib_module_names == {"ablatrix"}
