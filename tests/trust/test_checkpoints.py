"""Damaged checkpoints are refused and the one before is used; malicious ones do not act."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ablatrix.trainer import checkpoint
from ablatrix.trainer.config import load
from ablatrix.trainer.rundir import files, run_files
from ablatrix.trainer.rundir.errors import UserError
from tests.faults.conftest import Trainers, nursery, same_result, trainers  # noqa: F401
from tests.support.evidence import Cases, Tally
from tests.trust import forged

NAME = "checkpoint-00000020.pt"


def tiny(step: int) -> dict[str, Any]:
    """Return a state with every kind of value that a trainer's has."""
    numbers = torch.tensor([step, -0.0, math.nan, math.inf, 1e-45], dtype=torch.float32)
    progress = {"seconds": step / 3, "best": math.inf, "sums": torch.zeros(2, dtype=torch.float64)}
    return {"fingerprint": "aaaa", "step": step, "model": {"w": numbers}, "optimizer": {}, "progress": progress}


def stored(state: dict[str, Any]) -> dict[str, Any]:
    return {"format": checkpoint.FORMAT, **state}


def same(one: Any, two: Any) -> bool:
    """True if both are equal bit for bit, NaN included."""
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(same(one[name], two[name]) for name in one)
    if isinstance(one, torch.Tensor):
        alike = one.dtype == two.dtype and one.shape == two.shape
        return alike and one.view(torch.uint8).equal(two.view(torch.uint8))
    return type(one) is type(two) and repr(one) == repr(two)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run folder with two good checkpoints; reading is retried without pauses."""
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0))
    for step in (10, 20):
        checkpoint.save(tmp_path, tiny(step))
    return tmp_path


def require_refused(folder: Path, content: bytes) -> None:
    """Fail unless this content of the newest checkpoint is refused, and set aside for the one before."""
    path = folder / NAME
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint-00000020.pt: not a readable checkpoint \(.*choose") as error:
        checkpoint.load(path, "aaaa")
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)
    found = checkpoint.newest(folder, "aaaa")
    assert found is not None
    assert found[1].name == "checkpoint-00000010.pt"
    assert same(found[0], stored(tiny(10)))
    assert not path.exists()
    assert (folder / f"{NAME}.bad").read_bytes() == content


def test_a_whole_checkpoint_is_loaded_bit_for_bit(folder: Path) -> None:
    found = checkpoint.newest(folder, "aaaa")
    assert found is not None
    assert same(found[0], stored(tiny(20)))
    assert same(checkpoint.load(folder / "checkpoint-00000010.pt", "aaaa"), stored(tiny(10)))


def test_a_checkpoint_that_was_cut_is_refused(folder: Path, cases: Cases, seed: int, tally: Tally) -> None:
    whole = (folder / NAME).read_bytes()
    lengths = random.Random(seed).sample(range(len(whole)), cases(60, len(whole)))
    for length in {*lengths, 0, len(whole) - 1}:
        require_refused(folder, whole[:length])
    tally("a checkpoint cut short is refused, the one before used", cases=len(lengths))


def test_a_checkpoint_with_a_flipped_bit_is_refused(folder: Path, cases: Cases, seed: int, tally: Tally) -> None:
    """The CRCs of the zip format miss some of them."""
    whole = (folder / NAME).read_bytes()
    bits = random.Random(seed).sample(range(len(whole) * 8), cases(120, len(whole) * 8))
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        require_refused(folder, bytes(damaged))
    tally("a checkpoint with one flipped bit is refused", cases=len(bits))


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:500] + bytes(len(whole) - 500),  # what some file systems leave after a power cut
        lambda whole: bytes(len(whole)),
        lambda whole: whole + b"\0",
        lambda whole: whole + whole,
        lambda whole: b"not a checkpoint at all\n" * 50,
    ],
    ids=["zeros at the end", "zeros", "one byte more", "twice", "text"],
)
def test_other_damage_is_refused(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    require_refused(folder, damage((folder / NAME).read_bytes()))


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a readable checkpoint \(not a file\); choose another file"):
        checkpoint.load(tmp_path, "aaaa")


@pytest.mark.parametrize(
    "change",
    [{"step": "20"}, {"step": True}, {"format": "2"}, {"model": [1]}, {"progress": None}, {"fingerprint": b"aaaa"}],
    ids=lambda change: next(iter(change)),
)
def test_values_of_another_type_are_refused(folder: Path, change: dict[str, Any]) -> None:
    require_refused(folder, forged.sealed(forged.saved({**stored(tiny(20)), **change})))


# ---- malice


def test_malicious_checkpoints_do_not_act(folder: Path, tally: Tally) -> None:
    canary = folder / "canary"
    contents = forged.malicious(tiny(20), canary)
    for content in contents.values():
        require_refused(folder, content)
        require_refused(folder, forged.sealed(content))
        assert not canary.exists()
    tally("a malicious checkpoint is refused and does not act", cases=2 * len(contents), detail="0 canaries")


def test_they_act_where_torch_is_asked_to_unpickle_everything(tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    canary = tmp_path / "canary"
    for name, gadget in forged.gadgets(canary).items():
        (tmp_path / "file.pt").write_bytes(forged.saved(gadget))
        torch.load(tmp_path / "file.pt", weights_only=False)
        assert canary.exists(), name
        canary.unlink()


def unfinish(run: Path) -> None:
    for name in (run_files.SUMMARY, run_files.MODEL):
        (run / name).unlink(missing_ok=True)


def test_a_run_goes_on_past_a_malicious_checkpoint(trainers: Trainers, tally: Tally) -> None:  # noqa: F811
    """In its folder, or named as the one to start from."""
    undisturbed, run = (trainers.finish(name, trainer__max_iters=20) for name in ("undisturbed", "run"))
    canary, log = trainers.folder / "canary", trainers.folder / "run.out"
    newest = checkpoint.checkpoints(run)[0]
    state = checkpoint.load(newest, load(run / run_files.CONFIG).fingerprint_until)
    contents = forged.malicious({name: value for name, value in state.items() if name != "format"}, canary)
    unfinish(run)
    newest.write_bytes(forged.sealed(contents["os.system beside the weights"]))
    (run / run_files.BEST).write_bytes(contents["os.system as a plain pickle"])
    log.unlink()

    trainers.finish("run", trainer__max_iters=20)
    named = trainers.start("run", trainer__max_iters=20, trainer__resume=run / f"{newest.name}.bad")

    assert named.wait() == 2
    assert same_result(run, undisturbed)
    assert log.read_text().count("set aside as") == 1
    assert "Traceback" not in log.read_text()
    assert not canary.exists()
    tally("a run with a malicious checkpoint goes on from the one before", cases=2, detail="0 canaries")


@pytest.mark.parametrize("what", ["another model", "no weights", "no progress"])
def test_a_state_that_does_not_fit_is_an_error_of_one_line(trainers: Trainers, what: str) -> None:  # noqa: F811
    """Made by hand, under the right checksum and fingerprint."""
    run = trainers.finish("run", trainer__max_iters=6)
    unfinish(run)
    path = checkpoint.checkpoints(run)[0]
    state = torch.load(path, weights_only=True)
    if what == "another model":
        state["model"] = {name: value[..., :1].clone() for name, value in state["model"].items()}
    else:
        state["model" if what == "no weights" else "progress"] = {}
    checkpoint.save(run, {name: value for name, value in state.items() if name != "format"})
    log = trainers.folder / "run.out"
    before = log.read_text()

    assert trainers.start("run", trainer__max_iters=6).wait() == 2

    added = log.read_text().removeprefix(before)
    assert "Traceback" not in added
    assert added.splitlines()[-1].startswith("error: ")
    assert f"{path} does not fit this run (" in added
    assert os.path.exists(path)
