"""A run that the processes of two nodes share: one Slurm job, a requeue in the middle, the result of one process."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.events import read_events
from tests.support.forked_python import ForkedPython
from tests.support.workspace import HELD_STEP, Workspace

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm-1")]

# slow learning: sums in another order are other last digits, which the many steps of a fast one would blow up
SLOW = "--set", "trainer.learning_rate=1e-5"
SHARED = "--set", "trainer.strategy=ddp", "--set", "slurm.nodes=2"


def numbers(run_dir: Path) -> list[list[float]]:
    """iter, loss, val_loss and grad_norm of each row."""
    rows = loss_csv.parse_rows(run_files.read_text(run_dir / run_files.LOSS))
    kept = [loss_csv.COLUMNS.index(name) for name in ("iter", "loss", "val_loss", "grad_norm")]
    return [[float(row[i] or 0.0) for i in kept] for row in rows]


def submit(workspace: Workspace, name: str, *words: object, held: bool = False) -> None:
    study = workspace.write_study(name, iters=60, held=held)
    workspace.run("submit", study, "--only", "baseline", "--no-report", *SLOW, *words)


@pytest.fixture(scope="module")
def one_process(
    tmp_path_factory: pytest.TempPathFactory, offline_cache: Path, corpus: Path, forked_python: ForkedPython
) -> list[list[float]]:
    """The rows of one process."""
    workspace = Workspace(tmp_path_factory.mktemp("one"), corpus, offline_cache, python=forked_python.python)
    submit(workspace, "one", "--launcher", "local")
    return numbers(workspace.run_folder("baseline", "one"))


def finished(workspace: Workspace, one_process: list[list[float]]) -> list[str]:
    """The events of the run that two nodes have shared, whose rows must be those of one process."""
    workspace.wait(lambda states: states["baseline"]["state"] == "done", "two")
    run_dir = workspace.run_folder("baseline", "two")
    assert json.loads((run_dir / run_files.SUMMARY).read_text())["processes"] == 2
    assert (run_dir / "job-node1.out").exists()
    for row, expected in zip(numbers(run_dir), one_process, strict=True):
        assert row == pytest.approx(expected, abs=1e-5)
    return [event["event"] for event in read_events(run_dir)]


def test_equal_to_one_process_through_a_requeue(slurm_workspace: Workspace, one_process: list[list[float]]) -> None:
    submit(slurm_workspace, "two", "--launcher", "sbatch", *SHARED, held=True)
    slurm_workspace.wait(lambda states: states["baseline"]["iter"] >= HELD_STEP - 5, "two")
    job = slurm_workspace.states("two")["baseline"]["job_id"]
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    assert "NumNodes=2 " in shown
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    events = finished(slurm_workspace, one_process)
    assert events.count("requeued") == events.count("resumed") == events.count("finished") == 1


def test_through_submitit(slurm_workspace: Workspace, one_process: list[list[float]]) -> None:
    submit(slurm_workspace, "two", "--launcher", "submitit", *SHARED)
    assert finished(slurm_workspace, one_process).count("finished") == 1
