"""Every system call of a write fails in turn: the old file or the new one is there, whole, and nothing beside it.

Which calls there are is not written down: an undisturbed run is counted, and then call 1, 2, 3 ... fails.
"""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from ablatrix.trainer import checkpoint
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.files import TRANSIENT
from tests.faults import actions
from tests.faults.actions import NEW, OLD, state
from tests.faults.nursery import Nursery
from tests.faults.seccomp import Fault, Outcome
from tests.support.evidence import Cases

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("seccomp")]

ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EINTR)
HEADER = ",".join(loss_csv.COLUMNS) + "\n"
ROWS = [f"{step},{1 / step!r},0.1,,0.001,1.0,{step * 16},{step / 10!r}\n" for step in (1, 2, 3)]
ADDED = "3,0.5,,,,,,\n"


@dataclass(frozen=True)
class Case:
    """A write: what lies there before, how it is done, and whether what lies there afterwards is right."""

    action: Callable[..., int]
    args: tuple[bool, ...]
    before: Callable[[Path], object]
    check: Callable[[Path, Outcome], None]


def write_old(folder: Path) -> None:
    (folder / "file").write_text(OLD)


def check_replaced(folder: Path, outcome: Outcome) -> None:
    assert (folder / "file").read_text() in ([NEW] if outcome.code == 0 else [OLD, NEW])


def check_appended(folder: Path, outcome: Outcome) -> None:
    text = (folder / "file").read_text()
    if {"newfstatat", "ftruncate"} & set(outcome.failed):  # nothing can be done about a tail: readers leave it out
        text = text[: text.rfind("\n") + 1]
    assert text in ([OLD + "third\n"] if outcome.code == 0 else [OLD, OLD + "third\n"])


def write_checkpoints(folder: Path) -> None:
    for step in (10, 20):
        checkpoint.save(folder, state(step, step / 10))


def check_saved(folder: Path, outcome: Outcome) -> None:
    found = {int(path.stem[-8:]): checkpoint.load(path, "aaaa") for path in checkpoint.checkpoints(folder)}
    assert {20} < set(found) <= {10, 20, 30}
    assert outcome.code or 30 in found
    assert 30 in found or 10 in found, "an old checkpoint was dropped before the new one was safe"
    for step, there in found.items():
        assert there["step"] == step
        assert all(torch.equal(a, b) for a, b in zip(
            there["model"].values(), state(step, step / 10)["model"].values(), strict=True))  # fmt: skip


def write_rows(folder: Path) -> None:
    (folder / run_files.LOSS).write_text(HEADER + "".join(ROWS) + "4,0.2")


def check_rows(folder: Path, outcome: Outcome) -> None:
    text = (folder / run_files.LOSS).read_text()
    trimmed = HEADER + "".join(ROWS[:2])
    done = trimmed + ADDED
    assert text in ([done] if outcome.code == 0 else [HEADER + "".join(ROWS) + "4,0.2", trimmed, done])


CASES = {
    "replace": Case(actions.replace, (), write_old, check_replaced),
    "replace, short writes": Case(actions.replace, (True,), write_old, check_replaced),
    "replace, not durable": Case(actions.replace, (False, False), write_old, check_replaced),
    "append": Case(actions.append, (), write_old, check_appended),
    "append, short writes": Case(actions.append, (True,), write_old, check_appended),
    "checkpoint": Case(actions.save, (), write_checkpoints, check_saved),
    "loss.csv": Case(actions.rows, (), write_rows, check_rows),
}


@pytest.fixture
def numbers(cases: Cases) -> tuple[int, ...]:
    """Error numbers: one that passes and one that stays in every test run, all with --full."""
    return ERRORS[: cases(2, len(ERRORS))]


class Bench:
    """One case in a folder of its own for every fault."""

    def __init__(self, nursery: Nursery, folder: Path, case: Case) -> None:
        self.nursery, self.folder, self.case = nursery, folder, case
        self.log = folder / "log"
        (folder / "before").mkdir()
        case.before(folder / "before")

    def run(self, fault: Fault) -> Outcome:
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(self.folder / "before", work)
        self.log.write_text("")
        outcome = self.nursery.watched(self.case.action, str(work), *self.case.args, log=self.log, fault=fault)
        try:
            self.case.check(work, outcome)
            leftovers = [path.name for path in work.iterdir() if path.name.endswith(".tmp")]
            assert not leftovers or "unlink" in outcome.failed
            assert outcome.code in (0, 1), "it was not an OSError that came out"
        except AssertionError as error:
            raise AssertionError(f"{fault} {outcome}: {error}\n{self.log.read_text()}") from error
        return outcome


@pytest.fixture
def bench(request: pytest.FixtureRequest, nursery: Nursery, tmp_path: Path) -> Bench:
    return Bench(nursery, tmp_path, CASES[request.param])


@pytest.mark.parametrize("bench", ["replace", "checkpoint", "loss.csv"], indirect=True)
def test_content_is_on_disk_before_it_gets_its_name_and_then_the_name(bench: Bench) -> None:
    calls = bench.run(Fault()).calls
    written, renamed = calls.index("write"), calls.index("rename")
    assert "fsync" in calls[written:renamed] and "write" not in calls[calls.index("fsync") : renamed]
    assert calls[renamed + 1 : renamed + 4] == ["openat", "fsync", "close"]


@pytest.mark.parametrize("bench", CASES, indirect=True)
def test_every_call_fails_once(bench: Bench, numbers: tuple[int, ...]) -> None:
    calls = bench.run(Fault()).calls
    assert {"openat", "write", "close"} <= set(calls)
    for number, (at, call) in itertools.product(numbers, enumerate(calls, 1)):
        outcome = bench.run(Fault("once", at, number))
        assert outcome.failed == [call]
        if number in TRANSIENT:
            assert outcome.code == 0, f"call {at} ({call}) was not tried again"


@pytest.mark.parametrize("bench", CASES, indirect=True)
def test_every_call_fails_for_good(bench: Bench, numbers: tuple[int, ...]) -> None:
    calls = bench.run(Fault()).calls
    for number, (at, call) in itertools.product(numbers, enumerate(calls, 1)):
        outcome = bench.run(Fault("same", at, number))
        assert call in outcome.failed
        if outcome.code:
            said = bench.log.read_text().splitlines()[-1]
            assert f"raised [Errno {number}]" in said and str(bench.folder / "work") in said


@pytest.mark.parametrize("bench", CASES, indirect=True)
def test_everything_fails_from_some_call_on(bench: Bench) -> None:
    for at in range(1, len(bench.run(Fault()).calls) + 1):
        bench.run(Fault("all", at, errno.EIO))


@pytest.mark.parametrize("bench", CASES, indirect=True)
def test_killed_before_every_call(bench: Bench) -> None:
    for at in range(1, len(bench.run(Fault()).calls) + 1):
        work = bench.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(bench.folder / "before", work)
        fault = Fault("kill", at)
        outcome = bench.nursery.watched(bench.case.action, str(work), *bench.case.args, log=bench.log, fault=fault)
        assert outcome.code == -9
        for leftover in work.glob(".*.tmp"):
            leftover.unlink()
        if bench.case.check is check_appended:  # the only write that a kill may cut: the next append closes the tail
            whole = (work / "file").read_text().rpartition("\n")[0] + "\n"
            assert whole in (OLD, OLD + "third\n")
        else:
            bench.case.check(work, outcome)
