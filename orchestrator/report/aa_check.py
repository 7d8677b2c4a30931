"""The A/A check: the baseline against itself with other seeds, as a check of the whole chain.

It is not a feature and stands outside the family that verdicts are corrected for. The two are not paired, as they have
no seed in common, and are compared by the spread within these two cells alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import budgets
from ablatrix.orchestrator.report.comparison import compare
from ablatrix.orchestrator.report.decisions import Verdict, decide
from ablatrix.orchestrator.study.designs import AA, AA_SHIFT, is_aa

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.collect import RunRecord, Study
    from ablatrix.orchestrator.report.statistics import Effect


@dataclass(frozen=True)
class AACheck:
    """The result of the check. seeds: that its runs are trained with; effect: the baseline with these minus without."""

    runs: tuple[RunRecord, ...]
    seeds: tuple[int, ...]
    effect: Effect | None
    verdict: Verdict

    @property
    def failed(self) -> bool:
        """True if the baseline differs from itself, or if its seed changes nothing."""
        return self.verdict.decided or self.verdict is Verdict.IDENTICAL


def runs_of(study: Study) -> tuple[RunRecord, ...]:
    """Return the runs of the check, () for a study without one."""
    return tuple(run for run in study.cells.get(AA, ()) if is_aa(run.cell, run.features))


def check(study: Study, reference: str) -> AACheck | None:
    """Return the comparison of the baseline with itself; None for a study without one."""
    runs = runs_of(study)
    if not runs:
        return None
    usable = {reference: tuple(r for r in study.cells[reference] if r.usable), AA: tuple(r for r in runs if r.usable)}
    values = dict(budgets.match(usable, reference, budgets.tokens, final=True).comparable)
    shifted = {seed + AA_SHIFT: value for seed, value in values.get(AA, {}).items()}
    comparison = compare({reference: values.get(reference, {}), AA: shifted}, reference)
    effect = comparison.effects.get(AA)
    verdict = decide(effect, study.measure, study.margin, comparison.resolution)
    base = values.get(reference, {})
    if values.get(AA) and all(base.get(seed) == value for seed, value in values[AA].items()):
        effect, verdict = effect and replace(effect, method="identical"), Verdict.IDENTICAL
    return AACheck(runs, tuple(sorted(run.seed + AA_SHIFT for run in runs)), effect, verdict)
