"""What is checked before anything is queued: GPUs of this machine, and room for what would run."""

import os
import shutil
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path

import pytest

from ablatrix.orchestrator.study.matrix import Run
from ablatrix.orchestrator.submit import preflight
from ablatrix.orchestrator.submit.devices import find_devices
from ablatrix.orchestrator.verbs import submit
from ablatrix.orchestrator.verbs.check import check
from ablatrix.orchestrator.verbs.plan import Options, check_plan, make_plan
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.events import append_event
from ablatrix.trainer.rundir.program import run_module
from tests.support.workspace import Workspace

LISTED = """\
GPU 0: NVIDIA H100 (UUID: GPU-11111111-2222-3333-4444-555555555555)
  MIG 1g.10gb     Device  0: (UUID: MIG-66666666-7777-8888-9999-000000000000)
GPU 1: NVIDIA H100 (UUID: GPU-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee)
"""
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("wanted", ["0", "1,0", "GPU-aaaaaaaa", "MIG-66666666-7777-8888-9999-000000000000", ""])
def test_gpus_that_are_here(wanted: str) -> None:
    assert find_devices(wanted) == [name for name in wanted.split(",") if name]
    assert find_devices(None) == ["0", "1"]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("2", "there is no GPU 2 here; GPUs: 0, 1"),
        ("0,7", "no GPU 7 here"),
        ("cuda:0", "no GPU cuda:0 here"),
        ("-1", "no GPU -1 here"),
        ("1,1", "a GPU is listed twice"),
    ],
)
def test_gpus_that_are_not_here(wanted: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_devices(wanted)


def test_no_gpu_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no GPU here"):
        find_devices("0")
    assert find_devices("") == []


def test_devices_are_not_for_slurm(workspace: Workspace) -> None:
    options = Options(workspace.write_study(), "sbatch", devices="0")
    with pytest.raises(UserError, match="Slurm assigns the GPUs"):
        submit._check_devices(make_plan(options))


def test_check_looks_at_the_runs_that_submit_would_queue(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def record(loaded: object, runs: object, launcher: str, chosen: Sequence[Run]) -> list[str]:
        seen.append([run.cell for run in chosen])
        return []

    monkeypatch.chdir(workspace.folder)
    monkeypatch.setattr(preflight, "check_study", record)
    options = Options(workspace.write_study(extra="design: [baseline, one_at_a_time]\n"), "local")
    plan = make_plan(options)
    study = plan.create()
    append_event(study.runs[0].folder, "failed", reason="No space left on device")
    check_plan(plan)
    check_plan(make_plan(Options(options.file, "local", retry=True)))
    assert "baseline" not in seen[0] and sorted(seen[1]) == sorted(["baseline", *seen[0]])


def test_check_states_the_outcome_before_what_it_knows_of_the_corpora(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.folder)
    check(Options(workspace.write_study(), "local"))
    outcome, *corpora = capsys.readouterr().out.splitlines()
    assert outcome.endswith("no errors, 1 warning (local)")
    assert [line.partition(" (")[0] for line in corpora if line.startswith("warning: ")] == [
        "warning: the held-out text is small"
    ]


def test_cells_that_train_on_more_tokens_are_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    path = workspace.write_study(extra="design: [baseline, one_at_a_time]\n")
    assert list(preflight._warn_of_unequal_tokens(make_plan(Options(path, "local")).runs)) == []
    path.write_text(path.read_text().replace("features:\n", "features:\n  batch: {trainer.batch_size: 9}\n"))
    runs = make_plan(Options(path, "local")).runs
    tokens = {run.cell: f"{run.config.tokens:,}" for run in runs}
    (warning,) = preflight._warn_of_unequal_tokens(runs)
    assert f"(batch: {tokens['batch']}; others: {tokens['baseline']})" in warning
    pair = [run for run in runs if run.cell in ("baseline", "batch")]
    (warning,) = preflight._warn_of_unequal_tokens(pair)
    assert f"(batch: {tokens['batch']}; baseline: {tokens['baseline']})" in warning


def test_a_cell_that_trains_like_the_baseline(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    path = workspace.write_study(extra="design: [baseline, one_at_a_time]\n")
    path.write_text(path.read_text().replace("features:\n", "features:\n  often: {trainer.eval_interval: 7}\n"))
    plan = make_plan(Options(path, "local"))
    (problem,) = preflight._check_effects(plan.loaded, plan.runs)
    assert "cell often has no effect: with trainer.eval_interval: 7 the model" in problem


def test_checkpoints_that_a_failed_run_has_left_need_no_further_room(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.folder)
    plan = make_plan(Options(workspace.write_study(extra="design: [baseline]\n"), "local"))
    folder = plan.create().runs[0].folder
    needed = preflight._bytes_kept(plan.runs[0].config)  # type: ignore[arg-type]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, needed // 2))
    assert len(list(preflight._check_space(plan.loaded, plan.runs))) == 1
    with (folder / "checkpoint-10.pt").open("wb") as file:
        file.truncate(needed // 2 + 1)
    assert list(preflight._check_space(plan.loaded, plan.runs)) == []


def test_what_a_site_prints_at_the_start_of_python_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('welcome')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert run_module("json.tool", "--compact", text="[1, 2]") == "[1,2]"
