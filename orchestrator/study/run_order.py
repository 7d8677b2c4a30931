"""The order in which the runs of a study are queued: seed by seed, the cells of each seed shuffled.

An unfinished study then has about the same number of runs of every cell, and a machine that slows down over time
affects all cells alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class _Seeded(Protocol):
    @property
    def cell(self) -> str: ...

    @property
    def seed(self) -> int: ...


def in_queue_order(items: Iterable[Item], study: str, run_of: Callable[[Item], _Seeded]) -> list[Item]:
    """Sort items by seed, and within a seed in an order that depends on the study's name, the seed and the cell.

    run_of: returns an item's run. Any subset of a study's runs keeps its order.
    """

    def position(item: Item) -> tuple[int, bytes]:
        run = run_of(item)
        return run.seed, hashlib.blake2b(f"{study}\n{run.seed}\n{run.cell}".encode(), digest_size=8).digest()

    return sorted(items, key=position)
