"""`experiment_info`, and settings that are no part of a run's name: where they go, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.verbs.diff import find_differences
from ablatrix.trainer.config import load
from ablatrix.trainer.rundir import run_files
from tests.support.plans import FIVE, expand, refusals
from tests.support.workspace import Workspace

INFO = """\
experiment_info:
  name: Re-attention
  date: 2026-01-31
  hypothesis: "SwiGLU helps by ${vars_are_filled_in}"
vars: {vars_are_filled_in: 0.05}
"""


def test_goes_into_every_run_and_changes_none(tmp_path: Path) -> None:
    plain, runs = expand(tmp_path, FIVE), expand(tmp_path, FIVE + INFO)
    assert [run.id for run in runs] == [run.id for run in plain]
    for run in runs:
        info = run.config.info
        assert (info.name, info.date, info.hypothesis) == ("Re-attention", "2026-01-31", "SwiGLU helps by 0.05")
    study = study_dir.create_study(tmp_path / "out", "s", tmp_path / "e.yaml", {}, runs)
    wanted = {"name": "Re-attention", "date": "2026-01-31", "hypothesis": "SwiGLU helps by 0.05"}
    assert study.info == study_dir.load_study(study.folder).info == wanted
    assert load(study.runs[0].folder / run_files.CONFIG).info == runs[0].config.info


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("experiment_info: {hypotesis: x}", "experiment_info.hypotesis: unknown key (did you mean hypothesis?)"),
        ("experiment_info: {name: [5]}", "experiment_info.name: must be a string, found a list of 1"),
        ("experiment_info: {date: 31.1.2026}", "experiment_info.date: '31.1.2026' is not a date; write YYYY-MM-DD"),
        ("experiment_info: Re-attention", "experiment_info: must be a mapping (`key: value`), found 'Re-attention'"),
        ("features: {f: {info.name: x}}", "features.f.info.name: the same in all runs; give `experiment_info:`"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, fault: str) -> None:
    assert f"{tmp_path}/e.yaml:3: {fault}" in "\n".join(refusals(tmp_path, text))


def test_a_later_submit_takes_what_is_no_part_of_the_name(workspace: Workspace) -> None:
    """A run that is stopped goes on with the callbacks that the file has now; a finished one stays as it was."""
    path = workspace.write_study(iters=12)
    workspace.run("submit", path, "--launcher", "local", "--only", "baseline")
    path.write_text(path.read_text() + "experiment_info: {hypothesis: none}\n")
    path.write_text(path.read_text().replace("system: {cache_dir", "callbacks: {jsonl: true}\n  system: {cache_dir"))
    words = ("submit", path, "--launcher", "local", "--only", "baseline", "--only", "rope")
    workspace.run(*words)
    done, later = workspace.run_folder("baseline"), workspace.run_folder("rope")
    assert not (done / run_files.METRICS).exists() and (later / run_files.METRICS).exists()
    assert load(later / run_files.CONFIG).callbacks.jsonl and not load(done / run_files.CONFIG).callbacks.jsonl
    study = study_dir.load_study(done.parent)
    changed = {key for key, _, _ in find_differences(study.find("baseline"), study.find("rope"))}
    assert {"callbacks.jsonl", "info.hypothesis", "model.rope"} <= changed
    first_line = (later / run_files.JOB_OUT).read_text().splitlines()[0]
    assert first_line.endswith("experiment: hypothesis: none")


def test_renewed_before_it_runs(tmp_path: Path) -> None:
    (run, *_) = expand(tmp_path, FIVE)
    study = study_dir.create_study(tmp_path / "out", "s", tmp_path / "e.yaml", {}, [run])
    (again, *_) = expand(tmp_path, FIVE, ("callbacks.jsonl=true",))
    assert again.id == run.id
    config = study.runs[0].folder / run_files.CONFIG
    study_dir.create_study(tmp_path / "out", "s", tmp_path / "e.yaml", {}, [again])
    assert not load(config).callbacks.jsonl, "a run that may be at work must keep its configuration"
    study_dir.update_configs(study, [again])
    assert load(config).callbacks.jsonl and load(config).system.work_dir == str(study.runs[0].folder)
