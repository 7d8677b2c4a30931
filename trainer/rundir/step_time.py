"""Seconds per step of a run, estimated from its undisturbed stretches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import quantiles

BLOCKS = 32  # most blocks that a run is cut into
LOOKS = 8  # readings per block for a clock that is read only now and then


def lower_quartile(steps: Sequence[float], seconds: Sequence[float]) -> float | None:
    """Return the lower quartile of the seconds per step over blocks of a run, None if unknown.

    steps, seconds (R,): step and seconds of training so far in each row of loss.csv. Time before the first row does not
    count (the first step compiles and warms up), and up to three quarters of the run may be disturbed by other
    processes. Rows with equal times were read together: a command without a clock of its own is polled every few
    seconds.
    """
    rows = [(step, second) for step, second in zip(steps, seconds, strict=True) if second == second]  # not NaN
    kept = [row for row, after in pairwise(rows) if after[1] > row[1]] + rows[-1:]
    coarse = len(kept) < len(rows)
    blocks = min(BLOCKS, max(1, (len(kept) - 1) // (LOOKS if coarse else 1)))
    edges = [kept[round(i * (len(kept) - 1) / blocks)] for i in range(blocks + 1)] if len(kept) > 1 else []
    found = [(s2 - s1) / (i2 - i1) for (i1, s1), (i2, s2) in pairwise(edges) if i2 > i1 and s2 > s1]
    if len(found) < 2:
        return found[0] if found else None
    return quantiles(found, n=4, method="inclusive")[0]
