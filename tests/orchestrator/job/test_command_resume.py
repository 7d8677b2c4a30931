"""Commands that are stopped, killed and started again: what continues, what starts over, and what is reported."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.store import job_command, submit_attempts
from ablatrix.trainer.rundir import loss_csv, processes, run_files
from ablatrix.trainer.rundir.events import read_events
from tests.support.command_studies import LOSSES, create, start
from tests.support.waiting import PATIENCE, wait_for
from tests.support.workspace import Workspace

RESUME = "python train_script.py --out_dir={run_dir} --resume {flags}"


def has_step(folder: Path, step: int) -> bool:
    return f"iter {step}:" in run_files.read_text(folder / run_files.JOB_OUT)


def losses(folder: Path) -> list[list[str]]:
    return [[row[0], row[1], row[3]] for row in loss_csv.parse_rows(run_files.read_text(folder / run_files.LOSS))]


def expected(steps: int = 100) -> list[list[str]]:
    return [
        [str(i), repr(round(4 - 0.01 * i, 4)), repr(round(4.12 - 0.01 * i, 4)) if i % 10 == 0 else ""]
        for i in range(0, steps + 1, 2)
    ]


@pytest.mark.parametrize("how", ["USR2", "TERM"])
def test_a_command_that_saves_on_a_signal_goes_on_from_there(workspace: Workspace, how: str) -> None:
    base = {"learning_rate": 0.01, "max_iters": 100, "pause": 0.01, "listen": how}
    study = create(workspace, base=base, on_signal=how, resume_command=RESUME)
    folder = study.runs[0].folder
    process = start(workspace, folder)
    wait_for(lambda: has_step(folder, 30))
    process.send_signal(signal.SIGUSR2)
    assert process.wait(PATIENCE) == run_files.EXIT_STOPPED
    saved = json.loads((folder / "state.json").read_text())["step"]
    (state,) = study_state.collect(study)
    assert state.state == "stopped"
    assert state.reason.endswith("submit again to continue")
    assert start(workspace, folder).wait(PATIENCE) == 0
    events = [event["event"] for event in read_events(folder)]
    assert events == ["started", "signal", "stopped", "resumed", "finished"]
    assert f"iter {saved + saved % 2}:" in run_files.read_text(folder / run_files.JOB_OUT).split("Resuming")[1]
    assert losses(folder) == expected()
    assert study_state.collect(study)[0].state == "done"


def test_a_command_that_knows_no_signal_goes_on_from_its_checkpoint(workspace: Workspace) -> None:
    study = create(workspace, checkpoint="{run_dir}/state.json", resume_command=RESUME)
    folder = study.runs[0].folder
    process = start(workspace, folder)
    wait_for(lambda: has_step(folder, 50))
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == run_files.EXIT_STOPPED
    assert start(workspace, folder).wait(PATIENCE) == 0
    assert "checkpoint" in [event["event"] for event in read_events(folder)]
    assert "Resuming" in run_files.read_text(folder / run_files.JOB_OUT)
    assert losses(folder) == expected()


def test_without_a_checkpoint_or_a_way_to_resume_it_starts_over_and_says_so(workspace: Workspace) -> None:
    for changes, words in (
        ({}, "no resume_command is set"),
        ({"checkpoint": "{run_dir}/state.json", "resume_command": RESUME, "name": "late"}, "state.json yet"),
    ):
        study = create(workspace, **changes)
        folder = study.runs[0].folder
        for path in (*folder.glob("*.jsonl"), *folder.glob("job.out"), *folder.glob("state.json")):
            path.unlink()
        process = start(workspace, folder)
        wait_for(lambda at=folder: has_step(at, 10))  # type: ignore[misc]
        process.send_signal(signal.SIGUSR2)
        assert process.wait(PATIENCE) == run_files.EXIT_STOPPED
        if not changes:
            assert study_state.collect(study)[0].reason.endswith("submit again to start it again")
        assert start(workspace, folder).wait(PATIENCE) == 0
        last = [event for event in read_events(folder) if event["event"] == "started"][-1]
        assert words in last["reason"]
        assert losses(folder) == expected()
        (folder / run_files.SUMMARY).unlink()


@pytest.mark.parametrize("steps", [15, 45, 75])
def test_kill_9_at_any_moment(workspace: Workspace, steps: int) -> None:
    """The command dies with the process that supervises it, and the next attempt repeats and drops no step."""
    study = create(workspace, checkpoint="state.json", resume_command=RESUME)
    folder = study.runs[0].folder
    process = start(workspace, folder)
    wait_for(lambda: has_step(folder, steps - steps % 2))
    process.kill()
    process.wait()
    size = (folder / run_files.JOB_OUT).stat().st_size
    assert start(workspace, folder).wait(PATIENCE) == 0
    text = run_files.read_text(folder / run_files.JOB_OUT)
    assert ("Resuming" in text) == (steps > 20)
    assert size < len(text)
    assert losses(folder) == expected()
    assert text.count("iter 100: loss") == 1, "two commands at once"


def test_what_a_killed_attempt_has_left_behind_is_ended(workspace: Workspace) -> None:
    """A shell that started the trainer dies with its keeper, the trainer does not: two would write to one folder."""
    script = "echo iter 1: loss 2, time 1ms; if [ -e $ABLATRIX_RUN_DIR/pid ]; then exit 0; fi; "
    script += "sleep 600 & echo $! > $ABLATRIX_RUN_DIR/pid; wait"
    study = create(workspace, command=["bash", "-c", script], base={}, metrics={"regex": LOSSES})
    folder = study.runs[0].folder
    first = start(workspace, folder)
    wait_for(lambda: run_files.read_text(folder / "pid").endswith("\n"))
    left = Path("/proc") / (folder / "pid").read_text().strip() / "cmdline"
    wait_for(lambda: left.read_bytes().startswith(b"sleep"))
    first.kill()
    first.wait()
    assert left.read_bytes().startswith(b"sleep")
    assert start(workspace, folder).wait(PATIENCE) == 0
    wait_for(lambda: not left.exists() or not left.read_bytes())


@pytest.mark.parametrize("victim", ["task", "runner"])
def test_kill_9_leaves_no_process_of_the_command(workspace: Workspace, victim: str) -> None:
    """Whether the job's task is killed or the runner below it: nothing of the command goes on."""
    script = "echo iter 1: loss 2, time 1ms; sleep 600 & echo $! > $ABLATRIX_RUN_DIR/pid; wait"
    study = create(workspace, command=["bash", "-c", script], base={}, metrics={"regex": LOSSES})
    folder = study.runs[0].folder
    submit_attempts.take(folder, 1)
    words = job_command.task_command([(folder, 1)])
    with subprocess.Popen(words, cwd=workspace.folder, env=workspace.env(), stdout=subprocess.DEVNULL) as job:
        wait_for(lambda: run_files.read_text(folder / "pid").endswith("\n"))
        wait_for(lambda: "started" in [event["event"] for event in read_events(folder)])
        started = next(event for event in read_events(folder) if event["event"] == "started")
        helper = int((folder / "pid").read_text())
        os.kill(job.pid if victim == "task" else started["pid"], signal.SIGKILL)
    wait_for(lambda: not processes.born(started["pid"]) and not processes.born(helper))


def test_a_second_attempt_takes_the_run_over(workspace: Workspace) -> None:
    study = create(workspace, pause=0.05)
    folder = study.runs[0].folder
    first = start(workspace, folder)
    wait_for(lambda: has_step(folder, 4))
    second = start(workspace, folder)
    try:
        assert first.wait(PATIENCE) == run_files.EXIT_SUPERSEDED
        assert second.wait(PATIENCE) == 0
    finally:
        first.kill()
        second.kill()
    assert "superseded" in [event["event"] for event in read_events(folder)]
    assert losses(folder)[-1] == expected()[-1]


def test_a_command_that_does_not_listen_is_killed_with_all_it_has_started(workspace: Workspace) -> None:
    script = (
        "trap '' USR2 TERM; echo 'iter 1: loss 2, time 1ms'; sleep 600 & echo $! > $ABLATRIX_RUN_DIR/pid; wait; wait"
    )
    study = create(workspace, command=["bash", "-c", script], base={}, metrics={"regex": LOSSES})
    folder = study.runs[0].folder
    with (folder / run_files.JOB_OUT).open("ab") as output:
        command = "import sys; from pathlib import Path; "
        command += "from ablatrix.orchestrator.job import command_process, command_runner; "
        command += f"command_process.GRACE_SECONDS = 0.5; sys.exit(command_runner.main(Path({str(folder)!r})))"
        process = subprocess.Popen([sys.executable, "-c", command], env=workspace.env(), stdout=output, stderr=output)
    wait_for((folder / "pid").exists)
    wait_for(lambda: "started" in [event["event"] for event in read_events(folder)])
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == run_files.EXIT_STOPPED
    wait_for(lambda: not Path(f"/proc/{(folder / 'pid').read_text().strip()}/cmdline").exists())
