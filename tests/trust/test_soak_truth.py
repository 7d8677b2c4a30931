"""What the soak holds against `status`: a false state is found, a true one is not, however the truth has moved."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ablatrix.trainer.rundir.events import append_event
from tests.trust.soak_truth import Key, Queued, Truth, claimed, contradiction

KEY: Key = ("00ff00ff00ff00ff", "3")
WAITS, RUNS = Queued("7_3", "PENDING", "Priority"), Queued("7_3", "RUNNING", "None")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose second attempt is in the queue."""
    for attempt in ("1", "2"):
        path = tmp_path / ".queue" / attempt / "claim.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"token": KEY[0] if attempt == "2" else "old", "index": 3, "tasks": 9}))
    return tmp_path


def truth(folder: Path, job: Queued | None, trainer: bool = False, done: bool = False) -> Truth:
    jobs = {KEY: job} if job else {}
    trainers = {str(folder): frozenset({42})} if trainer else {}
    return Truth(time.time(), jobs, trainers, frozenset({str(folder)} if done else ()))


def said(state: str, reason: str = "", requeued: bool = False) -> dict[str, object]:
    return {"state": state, "reason": reason, "requeued": requeued}


def found(folder: Path, words: dict[str, object], before: Truth, after: Truth) -> str:
    return contradiction(words, folder, before, after, silent=False, submitting=False)


def test_claim(folder: Path) -> None:
    assert claimed(folder) == KEY


@pytest.mark.parametrize(
    ("words", "first", "last"),
    [
        (said("running"), WAITS, WAITS),
        (said("running"), None, None),
        (said("queued"), RUNS, RUNS),
        (said("queued"), None, None),
        (said("queued", "being submitted; its job is not known yet"), RUNS, RUNS),
        (said("stopped", requeued=True), RUNS, RUNS),
        (said("lost"), RUNS, RUNS),
        (said("cancelled"), WAITS, RUNS),
        (said("planned"), WAITS, WAITS),
        (said("done"), RUNS, None),
    ],
)
def test_false_states(folder: Path, words: dict[str, object], first: Queued | None, last: Queued | None) -> None:
    assert found(folder, words, truth(folder, first), truth(folder, last))


@pytest.mark.parametrize(
    ("words", "first", "last"),
    [
        (said("running"), WAITS, RUNS),
        (said("running"), RUNS, None),
        (said("queued"), WAITS, RUNS),
        (said("queued"), None, WAITS),
        (said("stopped", requeued=True), RUNS, WAITS),
        (said("lost"), RUNS, None),
        (said("cancelled"), None, None),
        (said("failed"), RUNS, RUNS),  # the job may go on with its other runs
    ],
)
def test_true_states(folder: Path, words: dict[str, object], first: Queued | None, last: Queued | None) -> None:
    assert not found(folder, words, truth(folder, first), truth(folder, last))


def test_what_has_finished_is_done_ever_after(folder: Path) -> None:
    done = truth(folder, None, done=True)
    assert found(folder, said("running"), done, done)
    assert not found(folder, said("done"), done, done)
    assert not found(folder, said("running"), truth(folder, RUNS), done)


def test_a_trainer_that_works_has_not_failed(folder: Path) -> None:
    works = truth(folder, RUNS, trainer=True)
    assert "a trainer works" in found(folder, said("failed"), works, works)
    assert "a trainer works" in found(folder, said("stopped"), works, works)
    assert not found(folder, said("failed"), works, truth(folder, RUNS))


def test_a_run_that_began_and_was_cancelled_between_two_looks_did_run(folder: Path) -> None:
    before = truth(folder, WAITS)
    time.sleep(0.01)
    append_event(folder, "started")
    time.sleep(0.01)
    assert not found(folder, said("running"), before, truth(folder, None))


def test_a_silent_controller_is_no_witness(folder: Path) -> None:
    silent = Truth(time.time(), None, {}, frozenset())
    assert not found(folder, said("lost"), silent, truth(folder, RUNS))
