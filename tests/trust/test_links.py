"""Each way in which Ablatrix opens or makes something, with each thing that may be there before."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ablatrix.orchestrator.report import output
from ablatrix.orchestrator.store import code_snapshot, study_dir, submit_attempts
from ablatrix.orchestrator.store.study_dir import Study, StudyRun
from ablatrix.trainer.data.shard_claims import Claims
from ablatrix.trainer.data.token_cache import appearing
from ablatrix.trainer.rundir import attempts, files, loss_csv, run_files
from ablatrix.trainer.rundir.attempts import Attempt
from ablatrix.trainer.rundir.errors import AblatrixError
from ablatrix.trainer.rundir.events import append_event, read_events
from ablatrix.trainer.rundir.files import atomic_write
from tests.support.evidence import Tally

KINDS = ("dangling link", "link to a file", "link to a folder", "hard link", "FIFO", "file", "folder")


def appear(path: Path) -> None:
    with appearing(path) as file:
        file.write(b"new\n")


def claim(path: Path) -> None:
    with Claims(path.parent, stale=0.0) as held:
        if not held.acquire(path.name, take_over=True):
            held.acquire(path.name, take_over=True)


def start_job(path: Path) -> None:
    submit_attempts.take(path.parent, 1)
    submit_attempts.start(path.parent, 1, "7")


def publish(path: Path) -> None:
    output.refresh(path, "x", lambda: {"report.md": "new\n"})


def study_in(path: Path) -> None:
    study_dir.create_study(path, "study", Path("x.yaml"), {}, [])


def append_to(path: Path) -> None:
    with files.open_to_append(path) as file:
        file.write(b"new\n")


def put_patch(path: Path) -> None:
    """As `.last` is written: an error is of no interest there."""
    study_dir.remember_last(path / "x", path.parent)


# what is called -> the name that it makes or writes in its folder
WRITERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "replaced files": (lambda path: atomic_write(path, "new\n"), "summary.json"),
    "private files": (lambda path: atomic_write(path, "new\n", mode=files.PRIVATE), "x.sbatch"),
    "appended lines": (lambda path: files.append_line(path, "new"), "events.jsonl"),
    "events": (lambda path: append_event(path.parent, "started"), "events.jsonl"),
    "loss.csv": (lambda path: loss_csv.LossLog(path.parent, 0).write({"iter": 1, "loss": 2.0}), "loss.csv"),
    "outputs of jobs": (append_to, "job.out"),
    "new files": (lambda path: files.create(path, "new\n"), "file"),
    "emptied files": (lambda path: os.close(files.open_file(path, os.O_WRONLY | os.O_TRUNC)), "owner.new"),
    "folders": (files.make_folder, "folder"),
    "private folders": (files.make_private_folder, "submitit"),
    "files of the cache": (appear, "tokens.bin"),
    "claims of the cache": (claim, "00001"),
    "attempts": (lambda path: Attempt.take(path.parent), ".attempts"),
    "queued attempts": (start_job, ".queue"),
    "studies": (study_in, "study"),
    "reports": (publish, "report"),
    "code snapshots": (code_snapshot.take, ".snapshots"),
    "the last study": (put_patch, ".last"),
}


def plant(path: Path, kind: str, outside: Path) -> None:
    outside.mkdir()
    (outside / "file").write_text("iter,loss\n7,7.0\n")
    (outside / "folder").mkdir()
    (outside / "folder" / "inside").write_text("victim\n")
    for found in outside.rglob("*"):
        os.utime(found, ns=(10**18, 10**18))
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "hard link":
        os.link(outside / "file", path)
    elif kind == "file":
        path.write_text("old\n")
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(outside / kind.rpartition(" ")[2].replace("link", "none"))


def look(folder: Path) -> list[tuple[str, int, int, str]]:
    """(path, mode, mtime, content) of everything below."""
    found = []
    for path in sorted([folder, *folder.rglob("*")]):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found.append((str(path), path.lstat().st_mode, path.lstat().st_mtime_ns, content))
    return found


FOLDERS = ("folder", "submitit", ".attempts", ".queue", "study", "report", ".snapshots")
NEW = ("file", "00001")  # what must not be there before


def outcomes(writer: str, folder: Path) -> dict[str, str]:
    """Kind of what is there before -> done or refused; fails where anything that it leads to is changed."""
    call, name = WRITERS[writer]
    ended = {}
    for kind in KINDS:
        place, outside = folder / kind / "place", folder / kind / "outside"
        place.mkdir(parents=True)
        plant(place / name, kind, outside)
        before = look(outside)
        try:
            call(place / name)
            ended[kind] = "done"
        except (OSError, AblatrixError) as error:
            told = str(error.strerror if isinstance(error, OSError) else error)
            assert told
            assert "\n" not in told
            ended[kind] = "refused"
        assert look(outside) == before, f"{writer}, {kind}: what it leads to was changed"
    return ended


def test_what_is_there_before_is_refused_or_replaced(tmp_path: Path, tally: Tally) -> None:
    refused = 0
    for writer, (_, name) in WRITERS.items():
        ended = outcomes(writer, tmp_path / writer)
        assert name in NEW or ended["folder" if name in FOLDERS else "file"] == "done", (writer, ended)
        refused += list(ended.values()).count("refused")
    cases = len(WRITERS) * len(KINDS)
    tally(
        "a link or FIFO in the way of one write is refused or replaced", cases, f"{refused} refused, 0 targets changed"
    )


@pytest.mark.parametrize("reader", [run_files.read_json, run_files.read_text, read_events, study_dir.load_study])
def test_nobody_waits_for_a_fifo(reader: Callable[[Path], object], tmp_path: Path) -> None:
    """A read that waited would never end; a link is read, as people archive results so."""
    for name in ("x", "events.jsonl", "study.json"):
        os.mkfifo(tmp_path / name)
    if reader is study_dir.load_study:
        with pytest.raises(AblatrixError, match="holds no study"):
            reader(tmp_path)
    else:
        assert not reader(tmp_path if reader is read_events else tmp_path / "x")
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("real.json")
    assert run_files.read_json(tmp_path / "link.json") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_removing_waits_for_nothing_and_follows_nothing(kind: str, tmp_path: Path) -> None:
    plant(tmp_path / "x", kind, tmp_path / "outside")
    before = look(tmp_path / "outside")
    files.remove(tmp_path / "x")
    assert not os.path.lexists(tmp_path / "x")
    assert look(tmp_path / "outside") == before


def test_folders_above_may_be_links(tmp_path: Path, tally: Tally) -> None:
    """Homes and scratch folders often are."""
    (tmp_path / "disk" / "me").mkdir(parents=True)
    (tmp_path / "home").symlink_to(tmp_path / "disk" / "me")
    (tmp_path / "disk" / "out").mkdir()
    (tmp_path / "home" / "out").symlink_to(tmp_path / "disk" / "out")
    study = tmp_path / "home" / "out" / "study"
    study_in(study)
    run = study / "baseline-seed1-0a1b2c3d"
    run.mkdir()
    start_job(run / ".queue")
    Attempt.take(run)
    append_event(run, "started")
    publish(study / "report")
    code_snapshot.take(study.parent / ".snapshots")
    assert json.loads((tmp_path / "disk/out/study/study.json").read_text())["name"] == "study"
    assert Study(study, "study", "", 0.0, {}, [StudyRun(run.name, "", 1, [], {}, run)]).find(run.name).folder == run
    tally("folders above a study may be links", 6)


@pytest.mark.parametrize("kind", KINDS)
def test_attempts_can_be_counted_whatever_is_in_their_place(kind: str, tmp_path: Path) -> None:
    """`status` looks there before anything is made or refused."""
    plant(tmp_path / submit_attempts.FOLDER, kind, tmp_path / "first")
    plant(tmp_path / attempts.FOLDER, kind, tmp_path / "second")
    assert submit_attempts.newest(tmp_path) == attempts.newest(tmp_path) == 0
