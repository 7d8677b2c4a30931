"""Links that lie where Ablatrix writes: refused with an error or replaced, and what they lead to stays as it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ablatrix.orchestrator.report import output
from ablatrix.orchestrator.store import code_snapshot, study_dir, submit_attempts
from ablatrix.trainer.data.shard_claims import Claims
from ablatrix.trainer.rundir import files, loss_csv, owners, run_files
from ablatrix.trainer.rundir.attempts import Attempt
from ablatrix.trainer.rundir.errors import AblatrixError
from ablatrix.trainer.rundir.events import append_event
from tests.support.evidence import Tally
from tests.support.trees import list_tree

KINDS = ("dangling link", "link to a file", "link to a folder", "hard link")


def take_claim(path: Path) -> None:
    with Claims(path.parent, stale=0.0) as held:
        if not held.acquire(path.name, take_over=True):
            held.acquire(path.name, take_over=True)


def start_job(path: Path) -> None:
    submit_attempts.take(path.parent, 1)
    submit_attempts.start(path.parent, 1, "7")


def append_output(path: Path) -> None:
    with files.open_to_append(path) as file:
        file.write(b"new\n")


# what is called -> the name that it makes or writes
WRITERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a replaced file": (lambda path: files.atomic_write(path, "new\n"), "summary.json"),
    "a private file": (lambda path: files.atomic_write(path, "new\n", mode=files.PRIVATE), "x.sbatch"),
    "an event": (lambda path: append_event(path.parent, "started"), "events.jsonl"),
    "loss.csv": (lambda path: loss_csv.LossLog(path.parent, 0).write({"iter": 1, "loss": 2.0}), "loss.csv"),
    "the output of a job": (append_output, "job.out"),
    "a new file": (lambda path: files.create(path, "new\n"), "file"),
    "a truncated file": (lambda path: os.close(files.open_file(path, os.O_WRONLY | os.O_TRUNC)), "owner.new"),
    "a folder": (files.make_folder, "folder"),
    "a private folder": (owners.make_private_folder, "submitit"),
    "a claim in the cache": (take_claim, "00001"),
    "an attempt": (lambda path: Attempt.take(path.parent), ".attempts"),
    "a queued attempt": (start_job, ".queue"),
    "a study": (lambda path: study_dir.create_study(path, "study", Path("x.yaml"), {}, []), "study"),
    "a report": (lambda path: output.refresh(path, "x", lambda: {"report.md": "new\n"}), "report"),
    "a code snapshot": (code_snapshot.take, ".snapshots"),
}


def plant(path: Path, kind: str, outside: Path) -> None:
    """Put a link at `path` to one of the things in the new folder `outside`."""
    (outside / "folder").mkdir(parents=True)
    (outside / "folder" / "inside").write_text("victim\n")
    (outside / "file").write_text("iter,loss\n7,7.0\n")
    for found in outside.rglob("*"):
        os.utime(found, ns=(10**18, 10**18))
    if kind == "hard link":
        os.link(outside / "file", path)
    else:
        path.symlink_to(outside / kind.rpartition(" ")[2].replace("link", "none"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_written_through_a_link(writer: str, kind: str, tmp_path: Path, tally: Tally) -> None:
    write, name = WRITERS[writer]
    (tmp_path / "place").mkdir()
    plant(tmp_path / "place" / name, kind, tmp_path / "outside")
    before = list_tree(tmp_path / "outside")
    try:
        write(tmp_path / "place" / name)
    except (OSError, AblatrixError) as error:
        message = str(error.strerror if isinstance(error, OSError) else error)
        assert message
        assert "\n" not in message
    assert list_tree(tmp_path / "outside") == before
    tally("a link in the way of a write is refused or replaced", cases=1, detail="its target unchanged")


@pytest.mark.parametrize("writer", WRITERS)
def test_without_a_link_it_is_written(writer: str, tmp_path: Path) -> None:
    write, name = WRITERS[writer]
    if writer == "a truncated file":
        (tmp_path / name).write_text("old\n")
    write(tmp_path / name)
    assert (tmp_path / name).exists() or writer == "a claim in the cache"  # given back at once


@pytest.mark.parametrize("kind", KINDS)
def test_removing_a_link_leaves_its_target(kind: str, tmp_path: Path) -> None:
    plant(tmp_path / "x", kind, tmp_path / "outside")
    before = list_tree(tmp_path / "outside")
    files.remove(tmp_path / "x")
    assert not os.path.lexists(tmp_path / "x")
    assert list_tree(tmp_path / "outside") == before


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Opening one would wait for its other end."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_APPEND):
        with pytest.raises(OSError, match="not a plain file"):
            files.open_file(pipe, flags)
    with pytest.raises(OSError, match="not a regular file"):
        files.open_for_reading(pipe)
    files.remove(pipe)
    assert not pipe.exists()


def test_links_are_read(tmp_path: Path) -> None:
    """People archive results behind links."""
    (tmp_path / "real.json").write_text('{"a": 1}')
    (tmp_path / "link.json").symlink_to("real.json")
    assert run_files.read_json(tmp_path / "link.json") == {"a": 1}


def test_folders_above_a_study_may_be_links(tmp_path: Path) -> None:
    """Home and scratch folders often are."""
    (tmp_path / "disk" / "out").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "disk")
    study = tmp_path / "home" / "out" / "study"
    study_dir.create_study(study, "study", Path("x.yaml"), {}, [])
    run = study / "baseline-seed1-0a1b2c3d"
    run.mkdir()
    start_job(run / ".queue")
    Attempt.take(run)
    append_event(run, "started")
    output.refresh(study / "report", "x", lambda: {"report.md": "new\n"})
    code_snapshot.take(study.parent / ".snapshots")
    assert study_dir.load_study(tmp_path / "disk" / "out" / "study").name == "study"
