"""Planned looks at a study: after how many seeds its cells are judged, and with which share of the error rate.

A cell that is decided at a look stops, and without a margin a cell that will hardly be decided (futility); the others
and the baseline go on to the next look. The error rates of the looks sum to at most 0.05, so that a false verdict at
any of them has at most that probability (union bound). Stopping for futility only lowers it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ablatrix.trainer.rundir.console import count

ALPHA = 0.05  # of all looks together
FEWEST, MOST = 2, 10_000  # seeds of a look: one leaves no estimate of the noise
LADDER = (3, 5, 8, 12, 18, 27, 40, 60, 90)
LEAST_STEP = 1.25  # between a rung of the ladder and the last look
FUTILITY = 0.1  # 98% of the power of all seeds at 48 to 57% of their runs (`make science`)
SHARES = {3: (0.01, 0.015, 0.025)}  # number of looks -> error rates, where they differ from those in 1 : 2 : 3 ...


@dataclass(frozen=True)
class Looks:
    """Seeds per cell at each look, increasing, and the error rate of each look.

    futility: a cell stops when its probability to be decided by the last look is less; 0: never.
    """

    seeds: tuple[int, ...]
    alpha: tuple[float, ...]
    futility: float = 0.0

    def __len__(self) -> int:
        return len(self.seeds)

    def of_seed(self, number: int) -> int:
        """Return the first look (from 0) that a cell's seed belongs to; number: the seed's, from 1."""
        return next((i for i, most in enumerate(self.seeds) if number <= most), len(self.seeds) - 1)

    def describe(self, cells: int) -> str:
        """Return `looks at 3, 5 and 8 seeds (error rates 0.01, 0.015 and 0.025): at least 21 runs, at most 56`."""
        *first, last = map(str, self.seeds)
        seeds = " and ".join(filter(None, (", ".join(first), count(int(last), "seed"))))
        rates = ", ".join(f"{alpha:g}" for alpha in self.alpha)
        return (
            f"looks at {seeds} (error rates {rates}): at least {count(cells * self.seeds[0], 'run')}, "
            f"at most {cells * self.seeds[-1]}"
        )

    def as_record(self) -> dict[str, Any]:
        """Return the looks for study.json."""
        return {"seeds": list(self.seeds), "alpha": list(self.alpha), "futility": self.futility}


Number = Annotated[int, Field(le=MOST)]


class AdaptiveSeeds(BaseModel):
    """Seeds by planned looks: `{start: 3, up_to: 8}`, or `{looks: [3, 5, 8], alpha: [0.01, 0.015, 0.025]}`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    start: Number | None = Field(None, description="seeds of every cell at the first look")
    up_to: Number | None = Field(None, description="seeds at the last look, of cells that no look before has decided")
    looks: list[Number] | None = Field(None, description="seeds at each look, instead of start and up_to")
    alpha: list[float] | None = Field(None, description="error rate of each look; together at most 0.05")
    futility: float = Field(
        FUTILITY,
        ge=0,
        lt=0.5,
        description="without a margin, cells stop whose probability to be decided by the last look is less; 0: never",
    )

    def resolved(self) -> Looks:
        """Return the looks; they mean something where `problem` finds none."""
        seeds = tuple(self.looks or spread(self.start or 0, self.up_to or 0))
        return Looks(seeds, tuple(self.alpha or error_rates(len(seeds))), self.futility)

    def problem(self) -> str:
        """Return what is wrong, '' for nothing."""
        ends = (self.start, self.up_to)
        if (self.looks is None) == (ends == (None, None)) or (self.looks is None and None in ends):
            return "give either start and up_to, such as {start: 3, up_to: 8}, or looks, such as {looks: [3, 5, 8]}"
        seeds = [n for n in ends if n is not None] if self.looks is None else self.looks
        rising = all(a < b for a, b in itertools.pairwise(seeds))
        if not seeds or not rising or seeds[0] < FEWEST:
            return f"the seeds of the looks must increase from at least {FEWEST}, got {', '.join(map(str, seeds))}"
        return self._rates_problem(len(self.resolved().seeds))

    def _rates_problem(self, number: int) -> str:
        rates = self.alpha
        if rates is None:
            return ""
        if len(rates) != number:
            return f"alpha: there are {number} looks, but {len(rates)} error rates"
        if not all(0 < rate < 1 for rate in rates) or math.fsum(rates) > ALPHA + 1e-9:
            return f"alpha: error rates are positive and sum to at most {ALPHA:g}, got {math.fsum(rates):g}"
        return ""


def spread(start: int, up_to: int) -> list[int]:
    """Return the seeds of looks between a first and a last one: 3, 5 and 8; 3, 5, 8 and 12."""
    return [start, *(n for n in LADDER if start < n and n * LEAST_STEP <= up_to), up_to]


def error_rates(number: int) -> Sequence[float]:
    """Return the error rates of so many looks, which sum to ALPHA: later looks have more of it, as they have power."""
    shares = range(1, number + 1)
    return SHARES.get(number) or [math.floor(1e6 * ALPHA * share / sum(shares)) / 1e6 for share in shares]
