"""`clean`: what nothing needs goes, after a question; what a run, a report or a job may need stays."""

import json
import os
import time
from pathlib import Path

import pytest

from ablatrix.orchestrator.status import removed_files, study_state
from ablatrix.orchestrator.store import code_snapshot, study_dir, unused_code
from ablatrix.orchestrator.store.study_dir import Study, StudyRun
from ablatrix.orchestrator.verbs import clean
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.events import append_event
from ablatrix.trainer.rundir.files import atomic_write
from tests.support.plans import FIVE, expand

CODE, OTHER, QUEUED, FRESH = ("0" * 15 + c for c in "1234")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return study_dir.create_study(tmp_path / "out" / "s", "s", tmp_path / "e.yaml", {}, expand(tmp_path, FIVE)[:2])


def finish(run: StudyRun, *steps: int, summary: bool = True) -> None:
    for step in steps:
        (run.folder / f"checkpoint-{step:08d}.pt").write_bytes(b"x" * 1000)
    row = {"iter": max(steps), "loss": 2.5}
    (run.folder / run_files.LOSS).write_text(
        "\n".join(",".join(words) for words in (row, map(str, row.values()))) + "\n"
    )
    (run.folder / run_files.MODEL).touch()
    if summary:
        atomic_write(run.folder / run_files.SUMMARY, json.dumps({"iters": max(steps)}))
        append_event(run.folder, "finished", files=run_files.list_files(run.folder))


def names(study: Study) -> list[str]:
    return [item.path.name for item in clean.find_items(study)]


def test_the_older_checkpoint_of_a_finished_run_goes_and_is_not_missed(study: Study) -> None:
    finish(study.runs[0], 500, 1000)
    finish(study.runs[1], 500, 1000, summary=False)
    (item,) = items = clean.find_items(study)
    assert (item.path.name, item.bytes, item.inodes) == ("checkpoint-00000500.pt", 1000, 1)
    assert clean.remove_items(study, items) == items and names(study) == []
    folder = study.runs[0].folder
    assert (folder / "checkpoint-00001000.pt").exists() and (folder / run_files.MODEL).exists()
    assert len(list(study.runs[1].folder.glob("checkpoint-*.pt"))) == 2, "it may have to resume from either"
    state = study_state.collect(study)[0]
    assert (state.state, state.reason, state.missing) == ("done", "", ())
    assert removed_files.of_study(study) == []


def test_a_run_that_was_begun_again_meanwhile_keeps_all(study: Study) -> None:
    finish(study.runs[0], 500, 1000)
    items = clean.find_items(study)
    (study.runs[0].folder / run_files.SUMMARY).unlink()
    assert clean.remove_items(study, items) == []
    assert (study.runs[0].folder / "checkpoint-00000500.pt").exists()


def test_the_checkpoint_where_a_longer_run_branches_off_stays(study: Study) -> None:
    run = study.runs[0]
    config = json.loads((run.folder / run_files.CONFIG).read_text())
    config["trainer"] |= {"schedule": "wsd", "max_iters": 1000, "decay_steps": 100}
    (run.folder / run_files.CONFIG).write_text(json.dumps(config))
    finish(run, 900, 950, 1000)
    assert names(study) == ["checkpoint-00000950.pt"]


def test_results_that_were_put_aside_and_damaged_checkpoints(study: Study) -> None:
    aside = study.folder / f"{study.runs[0].id}.old-1"
    aside.mkdir()
    (aside / "loss.csv").write_text("iter\n")
    (study.folder / "mine.old-1").mkdir()
    (study.runs[0].folder / "checkpoint-5.pt.bad").touch()
    assert names(study) == ["checkpoint-5.pt.bad", aside.name]
    clean.remove_items(study, clean.find_items(study))
    assert not aside.exists() and (study.folder / "mine.old-1").exists()


def test_code_that_nothing_names(study: Study) -> None:
    store = study.folder.parent / study_dir.SNAPSHOTS
    for code in (CODE, OTHER, QUEUED, FRESH):
        (store / code / "trainer").mkdir(parents=True)
        (store / code / "trainer" / "loop.py").write_text("x = 1\n")
        if code != FRESH:
            os.utime(store / code, (time.time() - 7200,) * 2)
    (store / f"{OTHER}.patch").touch()
    neighbor = study.folder.parent / "t" / "run.old-1"
    neighbor.mkdir(parents=True)
    (neighbor / run_files.PROVENANCE).write_text(json.dumps({"code_snapshot": CODE}))
    (study.folder / study_dir.LOGS / "a.sbatch").write_text(f"export PYTHONPATH={store}/{QUEUED}\n")
    assert names(study) == [OTHER]
    clean.remove_items(study, clean.find_items(study))
    assert sorted(path.name for path in store.iterdir()) == [CODE, QUEUED, FRESH]


def test_submit_prunes_where_many_snapshots_have_gathered(tmp_path: Path) -> None:
    store = tmp_path / study_dir.SNAPSHOTS
    for i in range(unused_code.MOST_SNAPSHOTS + 2):
        (store / f"{i:016x}").mkdir(parents=True)
        os.utime(store / f"{i:016x}", (time.time() - 7200,) * 2)
    taken = code_snapshot.take(store)
    unused_code.prune(store)
    assert list(store.iterdir()) == [taken]


def test_another_users_study_is_left_alone(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(study_dir, "is_own", lambda path: False)
    with pytest.raises(UserError, match="owned by"):
        clean.find_items(study)
