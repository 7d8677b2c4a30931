"""What the processes of the fault tests do. Each returns an exit code: 0 done, 1 an OSError was raised."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy.random  # noqa: F401 - imported on first use otherwise, which a full memory does not allow
import torch

from ablatrix.models.config import GPTConfig
from ablatrix.models.gpt import GPT
from ablatrix.trainer import checkpoint
from ablatrix.trainer.cli import main
from ablatrix.trainer.loop import Trainer
from ablatrix.trainer.rundir import files, loss_csv
from ablatrix.trainer.rundir.files import append_line, atomic_write

OLD, NEW = "old\n" * 3, "new and longer\n" * 300


def state(step: int, filling: float = 1.0) -> dict[str, Any]:
    """A small checkpoint's state, all numbers `filling`."""
    weights = {f"w{i}": torch.full((60, 7), filling) for i in range(3)}
    progress = {"seconds": 1.5, "sums": torch.zeros(2)}
    optimizer = {"steps": torch.tensor(float(step))}
    return {"fingerprint": "aaaa", "step": step, "model": weights, "optimizer": optimizer, "progress": progress}


def impatient() -> None:
    """Retries without the pauses."""
    files.PAUSES = (0.0,) * len(files.PAUSES)


def halve_writes() -> None:
    """Every write is cut short, as POSIX allows."""
    write = os.write
    os.write = lambda fd, data: write(fd, memoryview(data)[: (memoryview(data).nbytes + 1) // 2])


def warm_up(folder: str) -> int:
    """Whatever is imported or read on first use by the others."""
    GPT(GPTConfig(model_type=None, n_layer=1, n_head=2, n_embd=8).resolved(17, 8))
    return save(folder)


def replace(folder: str, short: bool = False, durable: bool = True) -> int:
    return _tried(short, lambda: atomic_write(Path(folder) / "file", NEW, durable))


def append(folder: str, short: bool = False) -> int:
    return _tried(short, lambda: append_line(Path(folder) / "file", "third"))


def save(folder: str, short: bool = False) -> int:
    return _tried(short, lambda: checkpoint.save(Path(folder), state(30, 3.0)))


def rows(folder: str, short: bool = False) -> int:
    """A LossLog that is opened behind step 2, gets a row and is synced."""

    def act() -> None:
        log = loss_csv.LossLog(Path(folder), 2)
        log.write({"iter": 3, "loss": 0.5})
        log.sync()

    return _tried(short, act)


def _tried(short: bool, action: Any) -> int:
    impatient()
    if short:
        halve_writes()
    try:
        action()
    except OSError as error:
        print(f"raised {error}", file=sys.stderr)
        return 1
    return 0


def train_within(argv: list[str], extra: int, report: str) -> int:
    """The same with at most `extra` more bytes of address space than at its first step; 0: no limit.

    The growth up to its end is written to `report`.
    """
    run = Trainer.run

    def limited(self: Trainer) -> None:
        before = _status("VmSize")
        if extra:
            resource.setrlimit(resource.RLIMIT_AS, (before + extra, resource.getrlimit(resource.RLIMIT_AS)[1]))
        run(self)
        Path(report).write_text(str(_status("VmPeak") - before))

    Trainer.run = limited  # type: ignore[method-assign]
    return main(argv)


def _status(name: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) * 1024


def train(argv: list[str], short: bool = False) -> int:
    """`python -m trainer ARGV`."""
    impatient()
    if short:
        halve_writes()
    return main(argv)
