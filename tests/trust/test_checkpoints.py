"""Checkpoints cut, with flipped bits, made by hand to do harm, or no files at all: refused, and the one before is used.

Nothing that is loaded ever differs from what was saved, and nothing in a file acts.
"""

from __future__ import annotations

import math
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.trainer import checkpoint
from ablatrix.trainer.config import load
from ablatrix.trainer.out_of_memory import is_out_of_memory
from ablatrix.trainer.rundir import files, run_files
from ablatrix.trainer.rundir.errors import UserError
from tests.faults.conftest import Trainers, nursery, same_result, trainers  # noqa: F401
from tests.support.evidence import Cases, Tally
from tests.trust import forged

NAME = "checkpoint-00000020.pt"


def tiny(step: int) -> dict[str, Any]:
    """A state of every kind of value that a trainer's has, as small as they come."""
    numbers = torch.tensor([step, -0.0, math.nan, math.inf, 1e-45], dtype=torch.float32)
    progress = {"seconds": step / 3, "best": math.inf, "sums": torch.zeros(2, dtype=torch.float64)}
    return {"fingerprint": "aaaa", "step": step, "model": {"w": numbers}, "optimizer": {}, "progress": progress}


def same(one: Any, two: Any) -> bool:
    """Equal bit for bit, also where a number is not equal to itself."""
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(same(one[name], two[name]) for name in one)
    if isinstance(one, torch.Tensor):
        alike = one.dtype == two.dtype and one.shape == two.shape
        return alike and one.view(torch.uint8).equal(two.view(torch.uint8))
    return type(one) is type(two) and repr(one) == repr(two)


def stored(state: dict[str, Any]) -> dict[str, Any]:
    return {"format": checkpoint.FORMAT, **state}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two good checkpoints; reading again is tried without pauses."""
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0))
    for step in (10, 20):
        checkpoint.save(tmp_path, tiny(step))
    return tmp_path


class Folder:
    """What the newest checkpoint is, time and again replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / NAME
        self.whole = self.path.read_bytes()

    def falls_back(self, content: bytes) -> None:
        """With this as the newest file the state is that of the one before, and the file is kept aside as it was."""
        self.path.write_bytes(content)
        found = checkpoint.newest(self.folder, "aaaa")
        assert found is not None and found[1].name == "checkpoint-00000010.pt" and same(found[0], stored(tiny(10)))
        assert not self.path.exists() and (self.folder / f"{NAME}.bad").read_bytes() == content

    def refuses(self, content: bytes) -> None:
        """Named as the one to start from, it is refused in one sentence."""
        self.path.write_bytes(content)
        with pytest.raises(UserError, match=r"checkpoint-00000020.pt: not a readable checkpoint \(.*name another") as e:
            checkpoint.load(self.path, "aaaa")
        said = str(e.value)
        assert len(said.splitlines()) == 1 and said.isprintable() and "weights_only" not in said


def test_whole_ones_are_loaded_bit_for_bit(folder: Path) -> None:
    found = checkpoint.newest(folder, "aaaa")
    assert found is not None and same(found[0], stored(tiny(20))) and not same(found[0], stored(tiny(10)))
    assert same(checkpoint.load(folder / "checkpoint-00000010.pt", "aaaa"), stored(tiny(10)))


def test_cut_at_every_byte(folder: Path, cases: Cases, seed: int, tally: Tally) -> None:
    there = Folder(folder)
    size = len(there.whole)
    ends = sorted([*random.Random(seed).sample(range(size), min(size, cases(300, size))), 0, size - 1])
    for end in ends:
        there.falls_back(there.whole[:end])
        there.refuses(there.whole[:end])
    tally("a checkpoint cut short is refused, the one before used", cases=len(ends), detail="0 other values, 0 errors")


def test_every_flipped_bit(folder: Path, cases: Cases, seed: int, tally: Tally) -> None:
    """Also where the CRCs of the zip format do not look: its tables of contents are at the end."""
    there = Folder(folder)
    bits = len(there.whole) * 8
    chosen = random.Random(seed).sample(range(bits), min(bits, cases(1000, bits)))
    for bit in chosen:
        there.refuses(flipped(there.whole, bit))
        if bit % 16 == 0:
            there.falls_back(flipped(there.whole, bit))
    tally("a checkpoint with one flipped bit is refused", cases=len(chosen), detail="0 other values, 0 errors")


def flipped(content: bytes, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_every_bit_flipped_before_it_was_summed(folder: Path, cases: Cases, seed: int, tally: Tally) -> None:
    """Memory that fails, or a checksum made by hand: other numbers may come of it, but no other error."""
    there = Folder(folder)
    content = there.whole[: -checkpoint.SEAL_SIZE]
    bits = len(content) * 8
    chosen = random.Random(seed).sample(range(bits), min(bits, cases(300, bits)))
    refused = 0
    for bit in chosen:
        there.path.write_bytes(forged.sealed(flipped(content, bit)))
        try:
            checkpoint.load(there.path, "aaaa")
        except UserError:
            refused += 1
        except RuntimeError as error:
            if not is_out_of_memory(error):  # of a tensor made much larger
                raise
    assert refused
    tally("a flipped bit under a right checksum is no traceback", cases=len(chosen), detail=f"{refused} refused")


def test_several_faults_at_once(folder: Path, cases: Cases, seed: int, tally: Tally) -> None:
    """Pieces missing, doubled, swapped, overwritten: what file systems and copies make of files."""
    there, chance = Folder(folder), random.Random(seed)
    number = cases(200, 2000)
    for _ in range(number):
        content = there.whole
        for _ in range(chance.randint(1, 3)):
            a, b = sorted(chance.randrange(len(content) + 1) for _ in range(2))
            filling = chance.choice([b"", bytes(b - a), chance.randbytes(b - a), content[a:b] * 2, content[b:]])
            content = content[:a] + filling + content[b:]
        if content != there.whole:
            there.falls_back(content)
            there.refuses(content)
    tally("a checkpoint with pieces lost, doubled or overwritten is refused", cases=number)


def test_malicious_ones_do_not_act(folder: Path, tally: Tally) -> None:
    there, canary = Folder(folder), folder / "canary"
    (folder / "canary.pt").write_bytes(forged.saved(forged.gadgets(canary)["os.system"]))
    files = forged.malicious(tiny(20), canary)
    for content in files.values():
        for written in (content, forged.sealed(content)):
            there.refuses(written)
            there.falls_back(written)
            assert not canary.exists()
    tally("a malicious checkpoint is refused and does not act", cases=2 * len(files), detail="0 canaries")


def test_gadgets_do_act_where_nobody_is_careful(tmp_path: Path) -> None:
    """Else the test above would show nothing."""
    canary = tmp_path / "canary"
    (tmp_path / "canary.pt").write_bytes(forged.saved(forged.gadgets(canary)["os.system"]))
    for name, gadget in forged.gadgets(canary).items():
        (tmp_path / "file.pt").write_bytes(forged.saved(gadget))
        torch.load(tmp_path / "file.pt", weights_only=False)
        assert canary.exists(), name
        canary.unlink()


MODEST = """
import resource, sys
from pathlib import Path
import torch
from ablatrix.trainer import checkpoint
from ablatrix.trainer.rundir import files as durable
from ablatrix.trainer.rundir.errors import UserError
durable.PAUSES = ()
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + (96 << 20),) * 2)
for path in sorted(Path(sys.argv[1]).glob("*.pt")):
    try:
        checkpoint.load(path, "aaaa")
    except UserError as error:
        print(path.name, str(error).isprintable())
"""


def test_bombs_take_no_memory(tmp_path: Path, tally: Tally) -> None:
    """In a process that may have 96 MB more than it has with torch loaded."""
    files = forged.bombs(tiny(20))
    for number, content in enumerate(files.values()):
        (tmp_path / f"{number:03}.pt").write_bytes(forged.sealed(content))
    with open(tmp_path / "999.pt", "wb") as file:
        file.truncate(1 << 42)  # of zeros that take no place
    environment = {**os.environ, "PYTHONPATH": str(code_root()), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", MODEST, str(tmp_path)]
    result = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    names = [line.split() for line in result.stdout.splitlines()]
    assert names == [[path.name, "True"] for path in sorted(tmp_path.glob("*.pt"))]
    tally("a small checkpoint that asks for much memory is refused", cases=len(names), detail="96 MB were enough")


def no_files(path: Path) -> dict[str, Callable[[], object]]:
    """Ways to have something else than a file under a name."""

    def listen() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))

    return {
        "a folder": path.mkdir,
        "a folder with something in it": lambda: (path / "file").mkdir(parents=True),
        "a pipe": lambda: os.mkfifo(path),
        "a socket": listen,
        "a link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "a link to a folder": lambda: path.symlink_to("/"),
    }


def test_what_is_no_file_is_set_aside(folder: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally) -> None:
    """Whatever an earlier one that was set aside has left. It must not wait for a writer, nor read without end."""
    monkeypatch.chdir(folder)
    path, number = folder / NAME, 0
    path.unlink()
    for kind in no_files(path):
        for before in ("nothing", "a file", "a folder"):
            aside = folder / f"{NAME}.bad"
            subprocess.run(["rm", "-rf", aside], check=True)
            if before == "a folder":
                (aside / "earlier").mkdir(parents=True)
            elif before == "a file":
                aside.write_text("earlier")
            no_files(path)[kind]()
            with pytest.raises(UserError, match=r"not a readable checkpoint \(not a file\); name another file"):
                checkpoint.load(path, "aaaa")
            found = checkpoint.newest(folder, "aaaa")
            assert found is not None and same(found[0], stored(tiny(10))) and not os.path.lexists(path)
            number += 1
    tally("a folder, pipe, socket or device under a checkpoint's name is set aside", cases=number)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "20"},
        {"step": True},
        {"format": "2"},
        {"model": [1]},
        {"progress": None},
        {"optimizer": torch.zeros(1)},
        {"fingerprint": b"aaaa"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_values_of_another_kind(folder: Path, change: dict[str, Any]) -> None:
    Folder(folder).falls_back(forged.sealed(forged.saved({**stored(tiny(20)), **change})))


# ---- trainers --------------------------------------------------------------------------------------------------------


def unfinished(run: Path) -> None:
    for name in (run_files.SUMMARY, run_files.MODEL):
        (run / name).unlink(missing_ok=True)


def test_a_run_goes_on_past_a_malicious_checkpoint(trainers: Trainers, seed: int, tally: Tally) -> None:  # noqa: F811
    """In its folder, or named as the one to start from; with files beside it that do not concern it."""
    undisturbed, run = (trainers.finish(name, trainer__max_iters=20) for name in ("undisturbed", "run"))
    canary, log = trainers.folder / "canary", trainers.folder / "run.out"
    newest = checkpoint.checkpoints(run)[0]
    state = checkpoint.load(newest, load(run / run_files.CONFIG).fingerprint_until)
    files = forged.malicious({k: v for k, v in state.items() if k != "format"}, canary)
    chosen = random.Random(seed).sample(sorted(files), 4)
    for name in chosen:
        unfinished(run)
        newest.write_bytes(forged.sealed(files[name]))
        for beside in (run_files.MODEL, run_files.BEST, "checkpoint-00000002.pt.bad", "weights.pkl"):
            (run / beside).write_bytes(files[name])
        log.unlink()
        trainers.finish("run", trainer__max_iters=20)
        assert same_result(run, undisturbed) and not canary.exists()
        said = log.read_text()
        assert said.count("set aside as") == 1 and "Traceback" not in said
        named = trainers.start("run", trainer__max_iters=20, trainer__resume=run / f"{newest.name}.bad")
        assert named.wait() == 2 and not canary.exists()
        assert log.read_text().removeprefix(said).count("\n") == 1
    tally("a run with a malicious checkpoint goes on from the one before", cases=2 * len(chosen), detail="0 canaries")


@pytest.mark.parametrize("what", ["another model", "no weights", "no progress", "odd progress"])
def test_a_state_that_does_not_fit(trainers: Trainers, what: str) -> None:  # noqa: F811
    """Made by hand, under the right checksum and fingerprint: one line, no traceback."""
    run = trainers.finish("run", trainer__max_iters=6)
    unfinished(run)
    config = run_files.read_json(run / run_files.CONFIG)
    assert config
    path = checkpoint.checkpoints(run)[0]
    state = torch.load(path, weights_only=True)
    match what:
        case "another model":
            state["model"] = {name: value[..., :1].clone() for name, value in state["model"].items()}
        case "no weights":
            state["model"] = {}
        case "no progress":
            state["progress"] = {}
        case _:
            state["progress"]["evaluations"] = {"load": 1, "best": "x"}
    checkpoint.save(run, {name: value for name, value in state.items() if name != "format"})
    log = trainers.folder / "run.out"
    before = log.read_text()
    assert trainers.start("run", trainer__max_iters=6).wait() == 2
    said = log.read_text().removeprefix(before)
    last = said.splitlines()[-1]  # below what is said of the corpus
    assert last.startswith("error: ") and "Traceback" not in said
    assert f"{path}: does not fit this run (" in last and "remove it, or name another" in last


def test_a_pipe_to_start_from_does_not_hang(trainers: Trainers) -> None:  # noqa: F811
    pipe = trainers.folder / "pipe.pt"
    os.mkfifo(pipe)
    child = trainers.start("run", trainer__resume=pipe)
    assert child.wait(60) == 2
    assert (trainers.folder / "run.out").read_text().count("\n") == 1
