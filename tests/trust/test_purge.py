"""A purge of scratch removes single old files: status names what is gone and the command that restores it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from ablatrix.orchestrator.status import removed_files, study_state
from ablatrix.orchestrator.store import study_dir
from ablatrix.trainer.rundir import run_files
from tests.conftest import Verb
from tests.support import finished_runs
from tests.support.evidence import Tally
from tests.support.workspace import Workspace

STUDY = Path("out/study")
SUBMIT = ("submit", "study.yaml", "--launcher", "local")

# pattern of the file, what status says of it, the command that writes the same file again
REWRITTEN = [
    ("out/study/report/summary.csv", "report writes it again", ("report", str(STUDY))),
    ("out/study/report/report.html", "report writes it again", ("report", str(STUDY))),
    ("out/study/baseline-*/config.json", "submit writes it again", SUBMIT),
    ("out/study/baseline-*/origins.json", "submit writes it again", SUBMIT),
    ("out/.snapshots/*/ablatrix/trainer/loop.py", "of the code snapshot", SUBMIT),
]
# the same of files that only another run of the trainer makes
RERUN = [
    ("out/study/baseline-*/loss.csv", "submit --retry runs it again", (*SUBMIT, "--retry")),
    ("out/study/baseline-*/summary.json", "submit --retry writes it again", (*SUBMIT, "--retry")),
    ("out/study/baseline-*/model.pt", "only submit --rerun makes it again", (*SUBMIT, "--rerun", "baseline")),
    ("out/study/baseline-*/events.jsonl", "only submit --rerun makes it again", (*SUBMIT, "--rerun", "baseline")),
]


@pytest.fixture(autouse=True)
def _in_the_folder_of_a_finished_study(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(work.folder)


def find(pattern: str) -> Path:
    return next(Path().glob(pattern))


def list_removed() -> list[str]:
    """Return what status and report say of removed files."""
    study = study_dir.load_study(STUDY)
    return removed_files.list_all(study, study_state.collect(study))


@pytest.mark.parametrize(("pattern", "words"), [(pattern, words) for pattern, words, _ in REWRITTEN + RERUN])
def test_a_removed_file_is_named_with_its_cure(pattern: str, words: str) -> None:
    assert list_removed() == []
    path = find(pattern)
    path.unlink()
    (line,) = list_removed()
    assert words in line
    assert path.name in line
    states = {state.run.cell: state.state for state in study_state.collect(study_dir.load_study(STUDY))}
    assert states == {"baseline": "lost" if path.name == run_files.SUMMARY else "done", "swiglu": "done"}


@pytest.mark.parametrize(("pattern", "command"), [(pattern, command) for pattern, _, command in REWRITTEN])
def test_a_file_that_is_written_again_is_the_same(verb: Verb, pattern: str, command: tuple[str, ...]) -> None:
    assert verb(*command)[0] == 0
    path = find(pattern)
    content = path.read_bytes()
    path.unlink()
    assert verb(*command)[0] == 0
    assert path.read_bytes() == content
    assert list_removed() == []


@pytest.mark.parametrize(("pattern", "command"), [(pattern, command) for pattern, _, command in RERUN])
def test_a_run_that_is_run_again_has_the_same_result(
    work: Workspace, verb: Verb, pattern: str, command: tuple[str, ...], tally: Tally
) -> None:
    original = finished_runs.results(work, "baseline")
    find(pattern).unlink()
    work.run(*command)
    for old in STUDY.glob("*.old-*"):
        shutil.rmtree(old)
    assert finished_runs.results(work, "baseline") == original
    assert list_removed() == []
    tally("a run with a purged file that is run again has the same result", cases=1, detail="clocks aside")


def test_a_study_without_its_plan_has_to_be_submitted_again(verb: Verb) -> None:
    (STUDY / study_dir.STUDY).unlink()
    for name in ("status", "report"):
        code, _, errors = verb(name, STUDY)
        assert code == 2
        assert "no study.json (was it removed?); submit the experiment again" in errors


@pytest.mark.parametrize("pattern", ["out/.last", "out/study/logs"])
def test_files_that_nothing_needs_may_go(verb: Verb, pattern: str) -> None:
    path = find(pattern)
    if path.is_dir():
        for file in filter(Path.is_file, path.rglob("*")):
            file.unlink()
    else:
        path.unlink()
    assert verb("status", STUDY)[0] == 0
    assert all("nothing needs it" in line for line in list_removed())


@pytest.mark.parametrize("pattern", ["out/study/baseline-*", "out/study/report", "out/.snapshots"])
def test_a_removed_folder_leaves_the_other_runs_as_they_are(verb: Verb, pattern: str) -> None:
    """A run without its folder counts as not begun."""
    path = find(pattern)
    shutil.rmtree(path)
    code, text, _ = verb("status", STUDY, "--json")
    assert code == 0
    states = {run["id"]: run["state"] for run in json.loads(text)["runs"]}
    assert states == {run: "planned" if run == path.name else "done" for run in states}


def test_a_run_without_its_loss_csv_begins_from_step_0(work: Workspace) -> None:
    """A result with a gap would look like a whole one."""
    run, original = work.run_folder("baseline"), finished_runs.results(work, "baseline")
    for name in (run_files.LOSS, run_files.SUMMARY, run_files.MODEL):
        (run / name).unlink()
    work.run(*SUBMIT, "--retry")
    assert finished_runs.results(work, "baseline") == original
    log = (run / run_files.JOB_OUT).read_text()
    assert "rows before checkpoint-00000010.pt; the run starts from the beginning" in log
    assert os.path.exists(run / "checkpoint-00000010.pt.bad")
