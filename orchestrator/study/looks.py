"""Planned looks at a study: after how many seeds its cells are judged, and with what share of the error rate.

A cell stops at a look if it is decided or, without a margin, if it is unlikely ever to be (futility); the other cells
and the baseline continue to the next look. The error rates of the looks sum to at most 0.05, which bounds the
probability of a false verdict at any look (union bound). Stopping for futility only lowers it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ablatrix.trainer.rundir.console import count

ALPHA = 0.05  # all looks together
FEWEST, MOST = 2, 10_000  # seeds at a look: a single one gives no estimate of the noise
LADDER = (3, 5, 8, 12, 18, 27, 40, 60, 90)
LEAST_STEP = 1.25  # between a rung of the ladder and the last look
FUTILITY = 0.1  # 98% of the power of all seeds at 48 to 57% of their runs (`make science`)
SHARES = {3: (0.01, 0.015, 0.025)}  # number of looks -> error rates, if not in the ratio 1 : 2 : 3 ...


@dataclass(frozen=True)
class Looks:
    """Seeds per cell at each look, increasing, and the error rate of each look.

    futility: a cell stops if its probability of being decided by the last look is lower; 0: never.
    """

    seeds: tuple[int, ...]
    alpha: tuple[float, ...]
    futility: float = 0.0

    def __len__(self) -> int:
        return len(self.seeds)

    def of_seed(self, number: int) -> int:
        """Return the first look (from 0) that includes a cell's seed. number: of the seed, from 1."""
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
    up_to: Number | None = Field(None, description="seeds at the last look, for cells undecided until then")
    looks: list[Number] | None = Field(None, description="seeds at each look, instead of start and up_to")
    alpha: list[float] | None = Field(None, description="error rate of each look; together at most 0.05")
    futility: float = Field(
        FUTILITY,
        ge=0,
        lt=0.5,
        description="without a margin, cells less likely than this to be decided by the last look stop; 0: never",
    )

    def resolved(self) -> Looks:
        """Return the looks, valid only if `problem` is empty."""
        seeds = tuple(self.looks or spread(self.start or 0, self.up_to or 0))
        return Looks(seeds, tuple(self.alpha or error_rates(len(seeds))), self.futility)

    def problem(self) -> str:
        """Return what is wrong, '' if nothing is."""
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
    """Return the seeds at each look from the first to the last: 3, 5 and 8; 3, 5, 8 and 12."""
    return [start, *(n for n in LADDER if start < n and n * LEAST_STEP <= up_to), up_to]


def error_rates(number: int) -> Sequence[float]:
    """Return the error rates of this many looks, which sum to ALPHA: later looks get more of it, as they have power."""
    shares = range(1, number + 1)
    return SHARES.get(number) or [math.floor(1e6 * ALPHA * share / sum(shares)) / 1e6 for share in shares]
