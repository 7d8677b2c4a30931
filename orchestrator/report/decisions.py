"""The verdict on a cell: one of ten words, decided from its effect and from what became of its runs."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report.statistics import ALPHA

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.statistics import Effect
    from ablatrix.orchestrator.study.metric import Measure


class Verdict(StrEnum):
    """What can be concluded about a cell. The first that applies, in the order of `decide`."""

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


def decide(effect: Effect | None, all_diverged: bool, measure: Measure) -> Verdict:
    """Return the verdict on a cell that is not the baseline. all_diverged: none of its finished runs is usable."""
    if effect is None:
        return Verdict.DIVERGED if all_diverged else Verdict.NO_RESULT
    if effect.identical:
        return Verdict.IDENTICAL
    if effect.p_joint is None:
        return Verdict.NO_CLAIM
    if effect.p_joint > ALPHA:
        return Verdict.INCONCLUSIVE
    return Verdict.HELPS if measure.is_better(effect.mean) else Verdict.HURTS
