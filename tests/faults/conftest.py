"""The forking process that the fault tests share, and the trainers they start with it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ablatrix.trainer.rundir import run_files
from tests.faults.actions import train
from tests.faults.nursery import Child, Nursery
from tests.faults.seccomp import Fault, Outcome, unsupported
from tests.support.workspace import without_clock


def spread(total: int, most: int, seed: int) -> list[int]:
    """At most `most` of the numbers 1 .. total, evenly spaced; where they begin depends on the seed."""
    if total <= most:
        return list(range(1, total + 1))
    begin = random.Random(seed).random()
    return [1 + int((i + begin) * total / most) for i in range(most)]


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="session")
def seccomp() -> None:
    """The test needs failing system calls; skipped with the reason where the kernel does not give them."""
    reason = unsupported()
    if reason:
        pytest.skip(reason)


@dataclass
class Trainers:
    """Trainers of one small run each, in folders under `folder`."""

    nursery: Nursery
    folder: Path
    corpus: Path
    cache: Path

    def argv(self, name: str, **settings: Any) -> list[str]:
        flags = {
            "data.file_path": self.corpus,
            "data.tokenizer": "sample",
            "data.block_size": 8,
            "data.test_size": 2,
            "model.model_type": None,
            "model.n_layer": 1,
            "model.n_head": 2,
            "model.n_embd": 8,
            "trainer.max_iters": 60,
            "trainer.batch_size": 2,
            "trainer.learning_rate": 1e-2,
            "trainer.log_interval": 2,
            "trainer.eval_interval": 20,
            "trainer.eval_tokens": 64,
            "trainer.ckpt_interval": 3,
            "trainer.device": "cpu",
            "system.cache_dir": self.cache,
            "system.work_dir": self.folder / name,
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
        return [f"--{key}={value}" for key, value in flags.items()]

    def start(self, name: str, short: bool = False, **settings: Any) -> Child:
        argv = self.argv(name, **settings)
        return self.nursery.start(train, argv, short, log=self.folder / f"{name}.out")

    def watched(self, name: str, fault: Fault, short: bool = False, **settings: Any) -> Outcome:
        argv, log = self.argv(name, **settings), self.folder / f"{name}.out"
        return self.nursery.watched(train, argv, short, log=log, fault=fault)

    def overtaken(self, name: str, at: int, **settings: Any) -> Outcome:
        """A trainer that waits before its system call number `at` until another one has finished its run."""
        argv, log = self.argv(name, **settings), self.folder / f"{name}.out"
        second = self.folder / f"{name}.second.out", train, (argv,)
        return self.nursery.watched(train, argv, log=log, fault=Fault("pause", at, changing=True), meanwhile=second)

    def finish(self, name: str, **settings: Any) -> Path:
        """Train to the end; the run folder."""
        child = self.start(name, **settings)
        assert child.wait() == 0, child.log.read_text()[-3000:]
        return self.folder / name


def same_result(run: Path, other: Path) -> bool:
    """Do two finished runs agree in every row and in every number of the summary, the clock's apart?"""
    clocks = ("seconds", "peak_memory_bytes", "timing", "loss_csv")  # the hash of a file with seconds in it
    summaries = [{k: v for k, v in (run_files.read_json(d / run_files.SUMMARY) or {}).items() if k not in clocks}
                 for d in (run, other)]  # fmt: skip
    return without_clock(run) == without_clock(other) and summaries[0] == summaries[1] != {}


@pytest.fixture
def trainers(nursery: Nursery, tmp_path: Path, corpus: Path, offline_cache: Path) -> Trainers:
    return Trainers(nursery, tmp_path, corpus, offline_cache)
