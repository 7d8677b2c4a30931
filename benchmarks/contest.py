"""Measure programs side by side, each in its own process, by asking each in turn for some steps.

A machine's speed drifts by more than the differences of interest, so no program is measured alone: in every round each
program does a few steps while the others sleep, and the result is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# keep freed memory instead of unmapping it; nothing else changes
KEEP_MEMORY = {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592"}


@dataclass(frozen=True)
class Contestant:
    """A program to measure: `spec` is passed to benchmarks.worker, `environment` is added to this process's."""

    name: str
    spec: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)


def environment(threads: int) -> dict[str, str]:
    """Return the environment of measured programs, which sets PYTHONPATH and the number of threads."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}


class Worker:
    """A contestant's process. It prints {"ready": ...} once, then answers each requested number of steps with seconds.

    wait: block until it is ready, after its first step. Raises RuntimeError if it exits before.
    """

    def __init__(self, contestant: Contestant, threads: int, *, wait: bool = True) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(dict(contestant.spec))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment(threads), **contestant.environment},
        )
        if wait:
            self.answer()

    def steps(self, count: int) -> float:
        """Do `count` steps and return the seconds they took."""
        return float(self.ask(str(count))["seconds"])

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the next answer, skipping lines that the measured program prints itself."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"a benchmark's worker ended with exit code {self.process.wait()}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()  # the worker exits at end of input
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def alternate(workers: Sequence[Worker], rounds: int, seconds: float, warmup: int = 3) -> list[list[float]]:
    """Return seconds per step: one list per worker with one value per round.

    Each worker does as many steps per round as fit in about `seconds`. The order is reversed every round.
    """
    counts = []
    for worker in workers:
        for _ in range(warmup):
            worker.steps(1)
        counts.append(max(1, round(seconds / min(worker.steps(1) for _ in range(3)))))
    times: list[list[float]] = [[] for _ in workers]
    for number in range(rounds):
        order = list(range(len(workers)))
        for i in order if number % 2 == 0 else reversed(order):
            times[i].append(workers[i].steps(counts[i]) / counts[i])
    return times


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Return how many times faster `times` is than `base`: the median over the rounds."""
    return statistics.median(b / t for t, b in zip(times, base, strict=True))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; columns after the first are right-aligned."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = []
    for row in cells:
        padded = [c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("| " + " | ".join(padded) + " |")
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
