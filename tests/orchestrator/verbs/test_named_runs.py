"""How `export` and `generate` find the run that they are given, and what they refuse before torch is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.orchestrator.study.command import SPEC
from ablatrix.orchestrator.verbs.export import export
from ablatrix.trainer.rundir.errors import UserError
from tests.support.plans import FIVE, expand


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.chdir(tmp_path)
    runs = expand(tmp_path, FIVE + "seeds: 2\n")
    study_dir.create_study(tmp_path / "out" / "other", "other", tmp_path / "e.yaml", {}, runs[:2])
    study = study_dir.create_study(tmp_path / "out" / "s", "s", tmp_path / "e.yaml", {}, runs)
    study_dir.remember_last(study.folder)
    return study


def test_a_run_is_named_by_its_folder_its_study_or_alone(study: Study) -> None:
    run = next(run for run in study.runs if run.id.startswith("swiglu-seed2"))
    for name in ("swiglu-seed2", "s/swiglu-seed2", "out/s/swiglu-seed2", str(run.folder), f"out/s/{run.id}/", run.id):
        assert study_dir.find_run(name, None).folder.resolve() == run.folder, name
    assert study_dir.find_run("baseline-seed1", "other").folder.parent.name == "other"
    assert study_dir.find_run("other/baseline-seed1", None).folder.parent.name == "other"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("swiglu", "matches more than one run"),
        ("s/geglu", "no such run"),
        ("nothing/swiglu-seed1", "no study there"),
        ("baseline-seed2", "no weights found"),
    ],
)
def test_a_run_that_cannot_be_exported_is_a_sentence(study: Study, tmp_path: Path, name: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        export(name, tmp_path / "target", None, Path("out"), form="transformers")
    assert not (tmp_path / "target").exists()


def test_weights_of_a_command_are_not_known(study: Study, tmp_path: Path) -> None:
    (study.runs[0].folder / SPEC).write_text("{}")
    with pytest.raises(UserError, match="is a run of your own command"):
        export(study.runs[0].id, tmp_path / "target", None, Path("out"), form="transformers")
