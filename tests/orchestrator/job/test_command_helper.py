"""ablatrix_run: the five lines in a training script, in a job and alone."""

import ast
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ablatrix_run
from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.trainer.rundir import loss_csv, run_files
from tests.support.command_studies import create, start
from tests.support.waiting import PATIENCE, wait_for
from tests.support.workspace import Workspace

SCRIPT = """\
import json, sys, time
from ablatrix_run import run

first = json.load(open(run.saved("state.json"))) if run.saved("state.json") else 1
for step in range(first, run.get("steps", 5) + 1):
    run.log(step, loss=4 - run.get("model.rate", 0.01) * step)
    if step == run.config.get("crash"):
        raise RuntimeError("planted")
    if run.should_stop():
        with run.checkpoint("state.json") as path:
            json.dump(step + 1, open(path, "w"))
        run.stop()
    time.sleep(run.get("pause", 0))
print("seed", run.seed)
"""


def write(workspace: Workspace) -> None:
    (workspace.folder / "own.py").write_text(SCRIPT)


def test_in_a_job_it_goes_on_where_it_was_stopped(workspace: Workspace) -> None:
    write(workspace)
    base = {"steps": 60, "model": {"rate": 0.02}, "pause": 0.02}
    study = create(workspace, command="python own.py", flags="in-process", base=base, metrics=None, seeds=[7])
    folder = study.runs[0].folder
    process = start(workspace, folder)
    wait_for(lambda: len(run_files.read_text(folder / "metrics.jsonl").splitlines()) > 10)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(PATIENCE) == run_files.EXIT_STOPPED
    (state,) = study_state.collect(study)
    assert (state.state, "submit again to continue" in state.reason) == ("stopped", True)
    assert start(workspace, folder).wait(PATIENCE) == 0
    rows = loss_csv.parse_rows(run_files.read_text(folder / run_files.LOSS))
    assert [(int(row[0]), float(row[1])) for row in rows] == [(step, 4 - 0.02 * step) for step in range(1, 61)]
    seconds = [float(row[-1]) for row in rows]
    assert seconds == sorted(seconds)
    steps = sorted(float(row[2]) for row in rows[1:])
    assert steps[1] > 0.019, "the time of a step is not the pause in it"  # but for the first one after the restart
    assert "seed 7" in run_files.read_text(folder / run_files.JOB_OUT)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 61)), "a step was repeated or left out"


def test_alone_it_works_in_a_folder_of_its_own(tmp_path: Path, workspace: Workspace) -> None:
    write(workspace)
    command = [sys.executable, "own.py"]
    shown = subprocess.run(
        command, cwd=workspace.folder, env=workspace.env(), check=True, capture_output=True, text=True
    )
    assert "step 5  loss 3.95" in shown.stdout
    assert len((workspace.folder / "run" / "metrics.jsonl").read_text().splitlines()) == 5
    (workspace.folder / "run" / "settings.json").write_text('{"steps": 100000, "pause": 0.01}')
    process = subprocess.Popen(command, cwd=workspace.folder, env=workspace.env(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == run_files.EXIT_STOPPED
    assert json.loads((workspace.folder / "run" / "state.json").read_text()) >= 2


def test_a_checkpoint_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    run = ablatrix_run.Run(str(tmp_path / "run"))
    assert run.saved("state") is None
    with run.checkpoint("state") as path:
        Path(path).write_text("1")

    def fail() -> None:
        with run.checkpoint("state") as path:
            Path(path).write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert Path(str(run.saved("state"))).read_text() == "1"
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["state"]


def test_numbers_of_any_library_and_torn_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    run = ablatrix_run.Run(str(tmp_path))
    monkeypatch.setattr(run, "listen", lambda: None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo')
    run.log(np.int64(2), loss=np.float32(0.5), val_loss=math.nan)  # type: ignore[arg-type]
    (line,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()[1:])
    assert line.pop("_seconds") >= 0
    assert line == {"step": 2, "loss": 0.5, "val_loss": "nan"}


def test_it_needs_python_3_8_and_nothing_else() -> None:
    tree = ast.parse((code_root() / "ablatrix_run.py").read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names
