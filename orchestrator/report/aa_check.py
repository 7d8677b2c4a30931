"""The A/A check: compare the baseline with itself under different seeds, to test the whole pipeline.

The check is not a feature, and the verdicts are not corrected for it. The two cells have no seed in common, so they are
compared unpaired, using only the spread within these two cells.
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
    """The result of the check. seeds: of its runs; effect: mean of its runs minus mean of the baseline's runs."""

    runs: tuple[RunRecord, ...]
    seeds: tuple[int, ...]
    effect: Effect | None
    verdict: Verdict

    @property
    def failed(self) -> bool:
        """True if the baseline differs from itself, or if changing the seed changes nothing."""
        return self.verdict.decided or self.verdict is Verdict.IDENTICAL


def runs_of(study: Study) -> tuple[RunRecord, ...]:
    """Return the runs of the check; () if the study has no A/A check."""
    return tuple(run for run in study.cells.get(AA, ()) if is_aa(run.cell, run.features))


def check(study: Study, reference: str) -> AACheck | None:
    """Return the comparison of the baseline with itself; None if the study has no A/A check."""
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
