"""Which job of several runs an attempt, on its first node and on the others."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ablatrix.orchestrator.store import shared_fs, submit_attempts


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return a run folder whose first attempt is claimed and has not started."""
    assert submit_attempts.take(tmp_path, 1)
    return tmp_path


def test_the_other_nodes_follow_the_job_of_the_first(run_dir: Path) -> None:
    assert submit_attempts.start(run_dir, 1, "7_0") is None
    assert submit_attempts.follow(run_dir, 1, "7_0") is None
    assert submit_attempts.start(run_dir, 1, "7_0") is None, "a requeued job must find its own mark"
    assert submit_attempts.follow(run_dir, 1, "8_0") == "job 7_0 runs attempt 1 already"


def test_the_other_nodes_leave_if_the_first_never_starts(run_dir: Path) -> None:
    reason = submit_attempts.follow(run_dir, 1, "7_0", seconds=0.0)
    assert reason == "the job's first node has not started within 0 s"


def test_no_node_runs_an_attempt_that_was_given_up(run_dir: Path) -> None:
    submit_attempts.take(run_dir, 2)
    reason = "attempt 1 was given up; attempt 2 has taken its place"
    assert submit_attempts.start(run_dir, 1, "7_0") == submit_attempts.follow(run_dir, 1, "7_0") == reason


def age(path: Path, seconds: float) -> None:
    path.touch()
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_change_of_the_watched_file_begins_the_wait_again(tmp_path: Path) -> None:
    mark, watched = tmp_path / "mark", tmp_path / "events.jsonl"
    assert shared_fs.has_settled(mark, watched, 0.0) and not mark.exists()
    assert not shared_fs.has_settled(mark, watched, 50.0) and mark.exists()
    age(mark, 100.0)
    assert shared_fs.has_settled(mark, watched, 50.0)
    watched.touch()
    assert not shared_fs.has_settled(mark, watched, 50.0)


def test_without_a_mark_the_age_of_the_watched_file_decides(tmp_path: Path) -> None:
    mark, watched = tmp_path / "not there" / "mark", tmp_path / "events.jsonl"
    watched.touch()
    assert not shared_fs.has_settled(mark, watched, 50.0)
    age(watched, 100.0 + shared_fs.SECONDS)
    assert shared_fs.has_settled(mark, watched, 50.0)
