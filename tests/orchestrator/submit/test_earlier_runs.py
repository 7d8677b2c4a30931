"""What a submit says and does about the runs that the study already has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.store import provenance, study_dir
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.orchestrator.study import matrix, run_config
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.orchestrator.submit import changed_inputs, earlier_runs
from ablatrix.orchestrator.verbs import diff
from ablatrix.trainer.data import fingerprints
from ablatrix.trainer.rundir import loss_csv, recorded_inputs, run_files, timing
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.events import read_events
from tests.support.plans import expand
from tests.support.workspace import Workspace, without_clock

ONE = "features: {rope: {model.rope: true}}\n"


def finish(study: Study, steps: int, **facts: object) -> None:
    """Give every run a result after so many steps."""
    for run in study.runs:
        log = loss_csv.LossLog(run.folder, 0)
        log.write({"iter": steps, "loss": 3.5})
        (run.folder / f"checkpoint-{steps:08d}.pt").write_bytes(b"weights")
        summary = {"iters": steps, **timing.describe(run.folder, "cpu"), **facts}
        (run.folder / run_files.SUMMARY).write_text(json.dumps(summary))


def make(folder: Path, *sets: str, text: str = ONE) -> tuple[list[Run], Study]:
    runs = expand(folder, text, ("trainer.max_iters=20", *sets))
    return runs, study_dir.create_study(folder / "s", "s", folder / "e.yaml", {}, runs)


def messages(folder: Path, *sets: str, text: str = ONE) -> list[str]:
    runs = expand(folder, text, ("trainer.max_iters=20", *sets))
    return earlier_runs.describe(runs, earlier_runs.find(folder / "s", runs))


@pytest.fixture
def finished(tmp_path: Path) -> list[Run]:
    runs, study = make(tmp_path)
    finish(study, 20)
    return runs


def test_nothing_to_say(tmp_path: Path, finished: list[Run]) -> None:
    assert messages(tmp_path) == messages(tmp_path, "trainer.ckpt_interval=7", "data.file_path=./x.jsonl") == []


@pytest.mark.parametrize(
    ("sets", "printed"),
    [
        (["trainer.learning_rate=1e-3"], "baseline, rope: trainer.learning_rate is 0.001, was 0.0003: 2 new runs take "
         "the place of 2 finished runs, which are kept beside them (IDS)"),
        (["data.file_path=y.jsonl"], "data.file_path is y.jsonl, was x.jsonl: 2 new runs take"),
        (["trainer.max_iters=30"], "trainer.max_iters is 30, was 20: 2 new runs take the place of 2 "
                                   "finished runs, which are kept beside them (IDS); the new runs "
                                   "continue from step 20"),
        (["trainer.max_iters=10"], "IDS); the new runs start from step 0"),
        (["trainer.max_iters=30", "trainer.batch_size=2"], "IDS); the new runs start from step 0"),
    ],
)  # fmt: skip
def test_changed_settings(tmp_path: Path, finished: list[Run], sets: list[str], printed: str) -> None:
    (line,) = messages(tmp_path, *sets)
    assert printed.replace("IDS", ", ".join(run.id for run in finished)) in line


def test_a_further_feature_changes_the_cells_that_have_it(tmp_path: Path) -> None:
    _, study = make(tmp_path)
    finish(study, 20)
    runs, study = make(tmp_path, text="features: {rope: {model.rope: true}, swiglu: {model.swiglu: true}}\n")
    finish(study, 20)
    more = "features: {rope: {model.rope: true}, swiglu: {model.swiglu: true}, batch: {trainer.batch_size: 2}}\n"
    (line,) = messages(tmp_path, text=more)
    last = runs[-1].id
    assert last.startswith("all_on-")
    assert line.startswith("all_on: trainer.batch_size is 2, was ")
    assert line.endswith(f": 1 new run takes the place of 1 finished run, which is kept beside it ({last})")


def test_a_schedule_that_depends_on_the_end(tmp_path: Path) -> None:
    _, study = make(tmp_path, "trainer.schedule=cosine")
    finish(study, 20)
    (line,) = messages(tmp_path, "trainer.schedule=cosine", "trainer.max_iters=30")
    assert "start from step 0: the learning rates of schedule cosine depend on trainer.max_iters" in line


def test_names_of_another_version(tmp_path: Path, finished: list[Run]) -> None:
    for run in finished:
        folder = tmp_path / "s" / run.id
        folder.rename(folder.with_name(f"{run.id[:-8]}00000000"))
    (line,) = messages(tmp_path)
    assert "names these runs differently, their settings are the same: 2 new runs take the place of 2 finished" in line
    assert "continue from step 20" in line


def test_a_run_left_beside_can_be_named(tmp_path: Path, finished: list[Run]) -> None:
    _, study = make(tmp_path, "trainer.learning_rate=1e-3")
    beside = study.find_any(finished[1].id[:-4])
    assert (beside.id, beside.cell, beside.seed) == (finished[1].id, "rope", finished[1].seed)
    assert study.find_any(study.runs[1].id) == study.runs[1]
    rows = diff.find_differences(beside, study.runs[1])
    assert ("trainer.learning_rate", "0.0003", "0.001") in rows
    with pytest.raises(UserError, match="no such run"):
        study.find_any("nothing")


def test_a_command(tmp_path: Path) -> None:
    text = 'command: [python, train.py, "{flags}"]\nbase: {lr: LR}\nmetrics: {csv: m.csv}\ndesign: [baseline]\n'
    path = tmp_path / "c.yaml"

    def planned(rate: str) -> list[Run]:
        path.write_text("name: s\n" + text.replace("LR", rate))
        return matrix.runs(load_experiment(path, ()), lambda config: (0, None))

    study = study_dir.create_study(tmp_path / "s", "s", path, {}, planned("0.1"))
    finish(study, 5)
    runs = planned("0.2")
    (line,) = earlier_runs.describe(runs, earlier_runs.find(tmp_path / "s", runs))
    assert "settings.lr is 0.2, was 0.1: 1 new run takes the place of 1 finished run, which" in line


def test_a_changed_loss_csv_is_no_start(tmp_path: Path, finished: list[Run]) -> None:
    for run in finished:
        (tmp_path / "s" / run.id / run_files.LOSS).write_text("")
    (line,) = messages(tmp_path, "trainer.max_iters=30")
    assert "start from step 0" in line


class TestInputs:
    @pytest.fixture
    def corpus(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "x.jsonl"
        path.write_text('{"text": "a document"}\n')
        return path

    def refused(self, folder: Path, again: tuple[str, ...] = ()) -> str:
        runs, study = make(folder)
        try:
            changed_inputs.refuse_changed_inputs(runs, study_state.collect(study), again)
        except UserError as error:
            return str(error)
        return ""

    def test_finished_runs(self, tmp_path: Path, corpus: Path) -> None:
        runs, study = make(tmp_path)
        finish(study, 20, **fingerprints.of_inputs(run_config.require_trainer(runs[0].config)))
        assert self.refused(tmp_path) == ""
        corpus.touch()
        assert self.refused(tmp_path) == ""
        corpus.write_text('{"text": "a Document"}\n')
        error = self.refused(tmp_path)
        assert error.startswith("the content of data.file_path (x.jsonl) has changed since 2 runs of this study used")
        assert f"--rerun {runs[0].id} --rerun {runs[1].id}" in error
        assert self.refused(tmp_path, tuple(run.id for run in runs)) == ""

    def test_a_stopped_run(self, tmp_path: Path, corpus: Path) -> None:
        _, study = make(tmp_path)
        folder = study.runs[0].folder
        provenance.write([folder], {recorded_inputs.CORPUS: "of another file"}, {})
        assert self.refused(tmp_path) == "", "nothing was trained"
        loss_csv.LossLog(folder, 0).write({"iter": 3, "loss": 3.5})
        assert "since 1 run of this study used it" in self.refused(tmp_path)

    def test_diff(self, tmp_path: Path, corpus: Path) -> None:
        _, study = make(tmp_path)
        finish(study, 20)
        one, two = study.runs[:2]
        (two.folder / run_files.SUMMARY).write_text(json.dumps({"iters": 20, recorded_inputs.CORPUS: "b"}))
        assert (recorded_inputs.CORPUS, "", "b") in diff.find_differences(one, two)


def test_more_steps_and_other_data(workspace: Workspace) -> None:
    """The whole way: 20 steps, then 26 from the last checkpoint; then the corpus changes."""
    own = workspace.folder / "own.jsonl"
    own.write_bytes(workspace.corpus.read_bytes())
    study = workspace.write_study()
    study.write_text(study.read_text().replace(str(workspace.corpus), "own.jsonl"))
    only = ("--launcher", "local", "--only", "rope")
    workspace.run("submit", study, *only)
    first = workspace.run_folder("rope")
    before = (first / run_files.LOSS).read_bytes()
    study.write_text(study.read_text().replace("max_iters: 20", "max_iters: 26"))
    assert "continue from step 20" in workspace.run("submit", study, *only).stdout
    second = workspace.folder / workspace.states()["rope"]["folder"]
    assert second != first and (first / run_files.LOSS).read_bytes() == before
    assert [event["iter"] for event in read_events(second) if event["event"] == "resumed"] == [20]
    config = json.loads((second / run_files.PROVENANCE).read_text())
    assert config["continued_from"] == {"run": first.name, "iter": 20}
    workspace.run("submit", study, *only, "--rerun", second.name)  # from step 0
    assert without_clock(second) == without_clock(Path(f"{second}.old-1"))
    assert [event["event"] for event in read_events(second)].count("resumed") == 0
    own.write_text(own.read_text().replace("the", "THE"))
    printed = workspace.run("submit", study, *only, code=2).stderr
    assert "own.jsonl) has changed since 1 run of this study used it" in printed
    assert f"--rerun {second.name}" in printed
    assert printed == workspace.run("check", study, code=2).stderr
    study.write_text(study.read_text().replace("max_iters: 26", "max_iters: 30"))
    shown = workspace.run("submit", study, *only, "--dry-run").stdout
    assert "the new runs start from step 0: the content of data.file_path has changed" in shown
