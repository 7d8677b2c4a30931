"""The rule by which a run counts as diverged: each measure is compared only with its own first value."""

from __future__ import annotations

import math
from collections.abc import Iterable

MARGIN = 0.2  # fraction of the first value; a smaller change is noise or overfitting
RULE = (
    f"a final value is not finite, or every recorded measure ended more than {MARGIN:.0%} worse than its own first "
    "value"
)

Ends = tuple[float | None, float | None]  # first and last value of one measure, None if unknown
Measured = tuple[float | None, float | None, bool]  # the same, and whether higher values are better


def is_diverged(ends: Iterable[Measured]) -> bool:
    """True if every measure whose two ends are known ended worse than it began; False if none is known.

    All must agree: held-out loss that rises while training loss falls is overfitting, a result like any other.
    """
    known = [(first, last, higher) for first, last, higher in ends if first is not None and last is not None]
    return bool(known) and all(ended_worse(*measured) for measured in known)


def ended_worse(first: float, last: float, higher_is_better: bool = False) -> bool:
    """True if `last` is worse than `first`, a value of the same measure, by more than MARGIN of its size."""
    if not (math.isfinite(first) and math.isfinite(last)):
        return False
    loss = first - last if higher_is_better else last - first
    return loss > MARGIN * abs(first)
