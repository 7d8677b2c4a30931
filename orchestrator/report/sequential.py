"""Seeds and cells added after the original plan: what was planned, what was added, and which guarantee still holds.

If seeds are added after results have been seen and the decision is made again, simultaneous intervals lose their error
rate. An e-value may be checked at any time: under the null hypothesis, the probability that it ever reaches 1 / alpha
is at most alpha.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report.formatting import join_names
from ablatrix.orchestrator.report.statistics import ALPHA
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.cell_result import CellResult
    from ablatrix.orchestrator.store.study_dir import Planned

PRIOR = 0.25  # g: standardized effects are N(0, 1 / g) under the alternative


def e_value(differences: Sequence[float], g: float = PRIOR) -> float | None:
    """Return the e-value against a mean of 0: a t test with right Haar prior, standardized effect ~ N(0, 1 / g).

    E = sqrt(r) ((1 + t^2 / nu) / (1 + r t^2 / nu))^((nu + 1) / 2), r = 1 / (1 + n / g), nu = n - 1 (Hendriksen, de
    Heide & Gruenwald 2021; Wang & Ramdas 2024). None for fewer than two differences, or differences without spread.
    """
    n = len(differences)
    mean = math.fsum(differences) / n if n else 0.0
    square = math.fsum((value - mean) ** 2 for value in differences)
    if n < 2 or square <= 0:
        return None
    r = 1 / (1 + n / g)
    ratio = n * mean**2 / square  # t^2 / nu
    return float(math.sqrt(r) * ((1 + ratio) / (1 + r * ratio)) ** (n / 2))


def cell_e_value(cell: CellResult, analysis: Analysis) -> float | None:
    """Return the e-value of a cell from its per-seed differences from the baseline, at the budget of its effect."""
    base, effect = analysis.base, cell.effect
    if base is None or cell is base or effect is None or cell.incomparable:
        return None
    return e_value([value for seed, value in zip(effect.seeds, effect.values, strict=True) if seed in base.values])


def threshold(analysis: Analysis) -> float:
    """Return the e-value at which a cell counts as decided, Bonferroni-corrected over all planned comparisons."""
    return max(1, len(analysis.compared)) / ALPHA


def unplanned(plans: Sequence[Planned]) -> list[Planned]:
    """Return the plans that added seeds or changed the looks after runs had finished."""
    return [
        now
        for before, now in pairwise(plans)
        if now.finished and (set(now.seeds) - set(before.seeds) or now.looks != before.looks)
    ]


def describe_growth(analysis: Analysis) -> Iterator[str]:
    """Yield notes on what was planned first and what was added, and on unplanned looks."""
    plans = analysis.study.plans
    if len(plans) < 2:
        return
    first, last = plans[0], plans[-1]
    added = []
    if seeds := sorted(set(last.seeds) - set(first.seeds)):
        added.append(f"seeds {_spans(seeds)}")
    if cells := [name for name in last.cells if name not in first.cells]:
        added.append(f"{'cell' if len(cells) == 1 else 'cells'} {join_names(cells)}")
    if added:
        yield (
            f"Originally planned: {count(len(first.cells), 'cell')} with seeds {_spans(first.seeds)}. Added later: "
            f"{' and '.join(added)}."
        )
    if found := unplanned(plans):
        yield _broken_guarantee(analysis, found[-1])


def _broken_guarantee(analysis: Analysis, plan: Planned) -> str:
    values = {cell.name: value for cell in analysis.compared if (value := cell_e_value(cell, analysis)) is not None}
    limit = threshold(analysis)
    decided = [name for name, value in values.items() if value >= limit]
    shown = join_names(decided) if decided else "no cell"
    what = "looks were changed" if plan.looks is not None else "seeds were added"
    return (
        f"An unplanned look: {what} after {count(plan.finished, 'run')} had finished. The intervals' error rate holds "
        f"for the plan, not for this look; e-values of {limit:g} or more are valid at any time and decide {shown}."
    )


def _spans(numbers: Iterable[int]) -> str:
    """Return `1 to 3 and 7`."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return join_names([str(a) if a == b else f"{a} to {b}" for a, b in spans])
