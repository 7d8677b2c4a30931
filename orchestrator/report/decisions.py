"""The verdict on a cell: one of ten words, decided from its effect and from how its runs ended."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.statistics import Effect
    from ablatrix.orchestrator.study.metric import Measure


class Verdict(StrEnum):
    """What can be concluded about a cell: the first that applies, in the order of `decide`."""

    BASELINE = "baseline"
    NO_RESULT = "no result"
    DIVERGED = "diverged"
    UNSTABLE = "unstable"
    IDENTICAL = "identical"
    NO_CLAIM = "no claim"
    HELPS = "helps"
    HURTS = "hurts"
    NO_EFFECT = "no effect"  # larger than the margin of the experiment file
    INCONCLUSIVE = "inconclusive"

    @property
    def decided(self) -> bool:
        """True if the simultaneous interval excludes 0."""
        return self in (Verdict.HELPS, Verdict.HURTS)


def decide(effect: Effect | None, measure: Measure, margin: float | None, resolution: float) -> Verdict:
    """Return the verdict that an effect alone allows.

    The simultaneous interval decides between helps and hurts; two one-sided tests at the margin (Schuirmann 1987) show
    that there is no effect larger than it. resolution: unit to which values are rounded; smaller effects stay
    undecided.
    """
    if effect is None:
        return Verdict.NO_RESULT
    if effect.identical:
        return Verdict.IDENTICAL
    if effect.p_joint is None:
        return Verdict.NO_CLAIM
    if is_decided(effect, resolution):
        return Verdict.HELPS if measure.is_better(effect.mean) else Verdict.HURTS
    if margin is not None and effect.within is not None and effect.within < margin:
        return Verdict.NO_EFFECT
    return Verdict.INCONCLUSIVE


def is_decided(effect: Effect | None, resolution: float) -> bool:
    """True if the simultaneous interval of an effect excludes 0 and the effect is no smaller than the resolution."""
    if effect is None or effect.p_joint is None:
        return False
    return effect.p_joint <= effect.alpha and abs(effect.mean) >= resolution * (1 - 1e-9)


def lost_more_runs(diverged: int, runs: int, base_diverged: int, base_runs: int) -> bool:
    """True if a larger share of the cell's finished runs diverged than of the baseline's."""
    return diverged * max(base_runs, 1) > base_diverged * runs


def fisher_p(diverged: int, runs: int, base_diverged: int, base_runs: int) -> float:
    """Return the two-sided p value of Fisher's exact test that both cells diverge equally often."""
    total = diverged + base_diverged

    def ways(lost: int) -> int:
        return math.comb(runs, lost) * math.comb(base_runs, total - lost)

    possible = range(max(0, total - base_runs), min(runs, total) + 1)
    seen = ways(diverged)
    return sum(w for k in possible if (w := ways(k)) <= seen) / math.comb(runs + base_runs, total)
