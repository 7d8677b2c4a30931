"""Runs with damaged checkpoints: noticed, and the one before is used. Which damage: tests/trust/test_checkpoints.py."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ablatrix.trainer import checkpoint
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import read_events
from tests.faults.actions import state
from tests.faults.conftest import Trainers, same_result
from tests.faults.seccomp import Fault

pytestmark = pytest.mark.slow


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    """The newer of two good checkpoints."""
    checkpoint.save(tmp_path, state(10, 1.0))
    return checkpoint.save(tmp_path, state(20, 2.0)).read_bytes()


def test_readable_by_torch_alone(tmp_path: Path, whole: bytes) -> None:
    path = checkpoint.checkpoint_path(tmp_path, 20)
    for mmap in (False, True):
        there = torch.load(path, weights_only=True, mmap=mmap)
        assert torch.equal(there["model"]["w0"], torch.full((60, 7), 2.0))


def test_old_ones_are_dropped_only_after_the_new_one_is_safe(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ablatrix.trainer.rundir import files

    seen: list[set[str]] = []
    sync = files.sync_folder

    def look(folder: Path) -> None:
        sync(folder)
        seen.append({path.name for path in checkpoint.checkpoints(folder)})

    monkeypatch.setattr(files, "sync_folder", look)
    checkpoint.save(tmp_path, state(30))
    assert seen == [{f"checkpoint-000000{step}.pt" for step in (10, 20, 30)}]
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [
        "checkpoint-00000030.pt",
        "checkpoint-00000020.pt",
    ]


@pytest.mark.parametrize("damaged", [1, 2], ids=["newest", "both"])
def test_run_goes_on_from_the_one_before(trainers: Trainers, damaged: int) -> None:
    undisturbed = trainers.finish("undisturbed", trainer__max_iters=20)
    run = trainers.finish("run", trainer__max_iters=20)
    for name in (run_files.SUMMARY, run_files.MODEL):
        (run / name).unlink()
    for path in checkpoint.checkpoints(run)[:damaged]:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    trainers.finish("run", trainer__max_iters=20)
    assert same_result(run, undisturbed)
    resumed = [r for r in read_events(run) if r["event"] in ("started", "resumed")][-1]
    assert resumed["iter"] == (18 if damaged == 1 else 0)
    assert (trainers.folder / "run.out").read_text().count("set aside as") == damaged


def test_later_checkpoints_are_dropped_by_a_run_that_goes_back(trainers: Trainers) -> None:
    """Started from an older checkpoint by name and killed: what comes next must not jump ahead of what it has done."""
    undisturbed = trainers.finish("undisturbed", trainer__max_iters=20)
    run = trainers.finish("run", trainer__max_iters=20)
    older = checkpoint.checkpoints(run)[1]
    shutil.copy(older, trainers.folder / "kept.pt")
    back: dict[str, Any] = {"trainer__max_iters": 20, "trainer__resume": trainers.folder / "kept.pt"}
    calls = trainers.watched("other", Fault(changing=True), **back).calls
    renames = [at for at, name in enumerate(calls, 1) if name == "rename"]
    at = renames[-4] - 8  # before its first checkpoint; model.pt, val_documents.json and summary.json follow
    assert trainers.watched("run", Fault("kill", at, changing=True), **back).code == -9
    assert [path.name for path in checkpoint.checkpoints(run)] == [older.name]
    trainers.finish("run", trainer__max_iters=20)
    assert same_result(run, undisturbed)


@pytest.mark.usefixtures("seccomp")
def test_checkpoint_on_a_bad_place_of_the_disk(trainers: Trainers) -> None:
    """Reading the newest checkpoint gives EIO for good: as damaged as a torn one."""
    undisturbed = trainers.finish("undisturbed", trainer__max_iters=20)
    run = trainers.finish("run", trainer__max_iters=20)
    for name in (run_files.SUMMARY, run_files.MODEL):
        (run / name).unlink()
    newest = checkpoint.checkpoints(run)[0]
    reads = trainers.watched("run", Fault(reading=newest.name), trainer__max_iters=20).calls
    assert len(reads) > 4
    for at in range(1, len(reads) + 1):
        (run / run_files.SUMMARY).unlink()
        outcome = trainers.watched("run", Fault("once", at, errno.EIO, reading=newest.name), trainer__max_iters=20)
        assert outcome.code == 0 and len(outcome.failed) == 1  # it passed
    assert not list(run.glob("*.bad")) and same_result(run, undisturbed)
    (run / run_files.SUMMARY).unlink()
    outcome = trainers.watched("run", Fault("same", 1, errno.EIO, reading=newest.name), trainer__max_iters=20)
    assert outcome.code == 0 and same_result(run, undisturbed)
    assert newest.with_name(newest.name + ".bad").exists()
