"""Checkpoint files: whole or not there, damaged ones set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ablatrix.trainer import checkpoint
from ablatrix.trainer.rundir.errors import UserError


def state(step: int, fingerprint: str = "aaaa") -> dict[str, Any]:
    weights = {"w": torch.full((1000,), float(step))}
    return {"fingerprint": fingerprint, "step": step, "model": weights, "optimizer": {}, "progress": {}}


def test_two_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 100):
        checkpoint.save(tmp_path, state(step))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["checkpoint-00000015.pt", "checkpoint-00000100.pt"]
    found = checkpoint.newest(tmp_path, "aaaa")
    assert (
        found is not None
        and found[0]["step"] == 100
        and torch.equal(found[0]["model"]["w"], torch.full((1000,), 100.0))
    )


def test_damaged_one_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Which damage is noticed: tests/trust/test_checkpoints.py."""
    checkpoint.save(tmp_path, state(1))
    path = checkpoint.save(tmp_path, state(2))
    path.write_bytes(path.read_bytes()[:-1])
    found = checkpoint.newest(tmp_path, "aaaa")
    assert found is not None and found[0]["step"] == 1
    assert not path.exists() and path.with_name("checkpoint-00000002.pt.bad").exists()
    assert "set aside as checkpoint-00000002.pt.bad" in caplog.text


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, state(1, "bbbb"))
    with pytest.raises(UserError, match=r"fingerprint bbbb, here aaaa.*work_dir"):
        checkpoint.newest(tmp_path, "aaaa")
    with pytest.raises(UserError, match="fingerprint bbbb"):
        checkpoint.load(path, "aaaa")
    assert path.exists()


def test_named_file_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*: No such file.*choose another file"):
        checkpoint.load(tmp_path / "missing.pt", "aaaa")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, state(1))
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"pickle|local object"):
        checkpoint.save_torch(path, {"unpicklable": lambda: 0})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_sweep_removes_what_was_left_half_written(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, state(1))
    for name in (".checkpoint-00000002.pt.host.123.tmp", ".loss.csv.host.123.tmp", ".model.pt.host.123.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / ".attempts").mkdir()
    checkpoint.remove_temporary_files(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".attempts", path.name]
