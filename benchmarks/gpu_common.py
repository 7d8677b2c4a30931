"""What the parts of `benchmarks.gpu` share: their time limits, starting programs, timing calls, error rows."""

from __future__ import annotations

import concurrent.futures
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from ablatrix.trainer.out_of_memory import first_line
from benchmarks.contest import Contestant, Worker

VOCAB = 50257
Row = dict[str, Any]
# Time limit of each part in seconds, the most important parts first; what is left of --minutes may be less
BUDGETS = {
    "machine": 40,
    "correctness": 60,
    "steps-gpt2": 150,
    "steps-nano1": 80,
    "steps-gpt2-32": 100,
    "sharing": 100,
    "sharing-mps": 60,
    "stacked": 40,
    "newton-schulz": 30,
    "head": 60,
    "steps-mini": 80,
    "steps-nano": 80,
}


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def error(name: str, reason: BaseException) -> Row:
    """Return the row to report when something could not be measured."""
    return {"name": name, "error": f"{type(reason).__name__}: {first_line(reason)}"}


def start(field: list[Contestant], threads: int, limit: float) -> Iterator[tuple[Contestant, Worker | Exception]]:
    """Start all programs; yield each with its worker, or with the error if it is not ready within `limit` seconds."""
    workers = [Worker(contestant, threads, wait=False) for contestant in field]
    with concurrent.futures.ThreadPoolExecutor(len(workers)) as pool:
        ready = [pool.submit(worker.answer) for worker in workers]
        _, late = concurrent.futures.wait(ready, timeout=limit)
        for future, worker in zip(ready, workers, strict=True):
            if future in late:
                worker.process.kill()
    for contestant, future, worker in zip(field, ready, workers, strict=True):
        failed = future.exception()
        yield contestant, failed if isinstance(failed, Exception) else worker


def timed(call: Callable[[], Any], rounds: int) -> tuple[float, float | None]:
    """Return the median seconds of a call, and the peak MiB of device memory that it allocates on top of the rest."""
    import torch

    cuda = has_cuda()
    for _ in range(3):
        call()
    before = 0
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return statistics.median(found), (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else None
