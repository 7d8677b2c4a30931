"""kill -9 at any moment: a run always goes on, and what it leaves is what an undisturbed one leaves."""

from __future__ import annotations

import math
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from ablatrix.trainer import checkpoint
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.events import read_events
from tests.faults.conftest import Trainers, same_result, spread
from tests.faults.seccomp import Fault
from tests.support import evidence
from tests.support.rows import rows_of, timeless

pytestmark = pytest.mark.slow

FEATURES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "swiglu": {"model__swiglu": True},
    "rmsnorm": {"model__rmsnorm": True},
    "rope": {"model__rope": True},
    "warmup": {"trainer__warmup_steps": 25},
    "cosine": {"trainer__use_cosine": True},
}
VARIANTS = [(name, workers) for name in FEATURES for workers in (0, 2)]


def check_in_passing(run: Path, expected: dict[int, list[str]]) -> int:
    """What a killed trainer has left: only whole and true things, but for the very last line. The steps logged."""
    text = run_files.read_text(run / run_files.LOSS)
    lines = text[: text.rfind("\n") + 1].splitlines()
    assert not lines or lines[0] == ",".join(loss_csv.COLUMNS)
    steps = [int(line.split(",")[0]) for line in lines[1:]]
    assert steps == list(expected)[: len(steps)], "a row is doubled, missing or out of order"
    for step, line in zip(steps, lines[1:], strict=True):
        assert timeless(line) == expected[step], "a row was invented"
    attempts = len(list((run / ".attempts").glob("*")))
    spoiled = len(run_files.read_text(run / run_files.EVENTS).splitlines()) - len(read_events(run))
    assert spoiled <= attempts, "a kill tears one line at most"
    for path in checkpoint.checkpoints(run):
        assert checkpoint._read(path)["step"] == int(path.stem[-8:])
    return len(steps)


def check_finished(run: Path, undisturbed: Path) -> None:
    assert same_result(run, undisturbed)
    ours, theirs = (torch.load(folder / run_files.MODEL, weights_only=True) for folder in (run, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not list(run.glob(".*.tmp")) and not list(run.glob("*.bad"))


@dataclass
class Met:
    """What the kills met."""

    kills: int = 0
    met: Counter[str] = field(default_factory=Counter)

    def note(self, run: Path, rows: int, resumed: bool) -> None:
        self.kills += 1
        self.met["before the first row" if not rows else "while training"] += 1
        self.met["a resumed attempt"] += resumed
        text = run_files.read_text(run / run_files.LOSS)
        self.met["leaving an unterminated row"] += bool(text) and not text.endswith("\n")
        self.met["leaving a temporary file"] += any(run.glob(".*.tmp"))
        self.met["after the last step"] += rows == 31


def test_random_kills(trainers: Trainers, cases: evidence.Cases, seed: int, tally: evidence.Tally) -> None:
    undisturbed, whole = {}, math.inf  # the shortest run, s: one that other work slowed down would outlast the others
    for name, settings in FEATURES.items():
        begun = time.monotonic()
        undisturbed[name] = trainers.finish(f"undisturbed-{name}", **settings)
        whole = min(whole, time.monotonic() - begun)
    chance = random.Random(seed)
    met, runs, kills = Met(), 0, cases(12, 200)
    while met.kills < kills:
        name, workers = VARIANTS[runs % len(VARIANTS)]
        runs += 1
        killed_until_finished(trainers, f"run{runs}", name, workers, undisturbed[name], (chance, whole), met)
    promise = "kill -9 at random moments: the run goes on and ends as an undisturbed one"
    shown = ", ".join(f"{count} {where}" for where, count in sorted(met.met.items()) if count)
    tally(promise, met.kills, f"{runs} runs; rows doubled 0, torn 0, invented 0; met {shown}")


def killed_until_finished(
    trainers: Trainers, folder: str, name: str, workers: int, undisturbed: Path, luck: tuple[random.Random, float],
    met: Met,
) -> None:  # fmt: skip
    run, expected = trainers.folder / folder, rows_of(undisturbed)
    chance, whole = luck
    attempts = 0
    while True:
        child = trainers.start(folder, trainer__num_workers=workers, short=attempts % 2 == 1, **FEATURES[name])
        child.process.join(chance.random() * whole)
        child.send(signal.SIGKILL)
        code = child.wait()
        assert code in (0, -signal.SIGKILL), f"a run that cannot resume: {child.log.read_text()[-3000:]}"
        if code == 0:
            break
        met.note(run, check_in_passing(run, expected) if run.exists() else 0, attempts > 0)
        attempts += 1
    check_finished(run, undisturbed)


@pytest.mark.usefixtures("seccomp")
def test_killed_before_every_system_call(
    trainers: Trainers, cases: evidence.Cases, seed: int, tally: evidence.Tally
) -> None:
    """Twice, for the second attempt begins with what the first has left. Writes are cut, so that rows tear."""
    undisturbed = trainers.finish("undisturbed", trainer__max_iters=8)
    expected = rows_of(undisturbed)
    calls = trainers.watched("counted", Fault(changing=True), True, trainer__max_iters=8).calls
    torn = 0
    chosen = spread(len(calls), cases(8, len(calls)), seed)
    for at in chosen:
        run = trainers.folder / f"run{at}"
        for fault in (Fault("kill", at, changing=True), Fault("kill", at // 2 + 1, changing=True)):
            outcome = trainers.watched(run.name, fault, True, trainer__max_iters=8)
            assert outcome.code in (0, -signal.SIGKILL)
            if run.exists():
                check_in_passing(run, expected)
            torn += not run_files.read_text(run / run_files.LOSS).endswith("\n")
        trainers.finish(run.name, trainer__max_iters=8)
        check_finished(run, undisturbed)
    assert torn or len(chosen) < len(calls)
    detail = (
        f"before each of {len(calls)} calls, twice; {torn} torn rows met; rows doubled 0, torn 0, invented 0 at the end"
    )
    tally(
        "kill -9 before a system call of the trainer: the run goes on and ends as an undisturbed one",
        2 * len(chosen),
        detail,
    )
