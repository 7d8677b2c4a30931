"""The words and digits of a study's results: the same on the page, in Markdown, LaTeX, the terminal and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import verdicts
from ablatrix.orchestrator.report.decisions import Verdict
from ablatrix.orchestrator.report.formatting import (
    DASH,
    count,
    p_text,
    percent,
    plain,
    quantity,
    short,
    signed,
    span_text,
)

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis, CellResult

NAMED, LONGEST = 6, 40  # cells that one part of the headline names; characters of each
PARAMETERS_DIFFER = 5e-4  # share from which on the ratio of parameters is shown


@dataclass(frozen=True)
class CellText:
    """A cell's row in every table. interval: the simultaneous one, which decides the verdict; runs: in the mean."""

    name: str
    value: str
    effect: str
    interval: str
    pointwise: str
    p: str
    verdict: str
    runs: str
    parameters: str


def cell_text(cell: CellResult, analysis: Analysis) -> CellText:
    """Return the strings of a cell's result."""
    digits, effect = analysis.decimals, cell.effect
    return CellText(
        name=cell.name,
        value=plain(cell.mean, digits),
        effect=signed(effect.mean if effect else None, digits),
        interval=span_text(effect.joint_low, effect.joint_high, digits) if effect else DASH,
        pointwise=span_text(effect.low, effect.high, digits) if effect else DASH,
        p=p_text(effect.p_joint if effect else None),
        verdict=verdicts.word(cell, analysis),
        runs=f"{len(cell.values)} of {len(cell.runs)}",
        parameters=parameters(cell, analysis.base),
    )


def parameters(cell: CellResult, base: CellResult | None) -> str:
    """Return `2.51 M (+0.1%)`, the second part only where the baseline has another number."""
    ratio = cell.parameters / base.parameters if base and base.parameters and cell.parameters else 1.0
    return quantity(cell.parameters) + (f" ({percent(ratio)})" if abs(ratio - 1) > PARAMETERS_DIFFER else "")


# ---- the study in one sentence ---------------------------------------------------------------------------------------


def headline(analysis: Analysis) -> str:
    """Return what the study shows: `swiglu (−0.145) and all_on (−0.282 nats) help. cosine: inconclusive.`"""
    if not any(cell.effect for cell in analysis.compared):
        done, runs = sum(run.finished for run in analysis.study.runs), analysis.study.runs
        return f"No cell can be compared with the baseline yet: {done} of {count(len(runs), 'run')} finished."
    parts = [_decided(analysis, Verdict.HELPS), _decided(analysis, Verdict.HURTS)]
    parts += [_others(analysis, verdict) for verdict in OTHERS]
    return " ".join(part for part in parts if part)


OTHERS = {
    Verdict.NO_EFFECT: "no effect larger than the margin",
    Verdict.INCONCLUSIVE: "inconclusive",
    Verdict.UNSTABLE: "unstable, with more diverged runs than the baseline",
    Verdict.NO_CLAIM: "no conclusion can be drawn",
    Verdict.IDENTICAL: "bit-identical to the baseline",
    Verdict.DIVERGED: "diverged",
    Verdict.NO_RESULT: "no result",
}


def _with(analysis: Analysis, verdict: Verdict) -> list[CellResult]:
    """Return the cells of a verdict, the largest effect first if it is one that names effects."""
    found = [cell for cell in analysis.compared if cell.verdict is verdict]
    return sorted(found, key=lambda c: -abs(c.effect.mean) if c.effect else 0.0) if verdict.decided else found


def _decided(analysis: Analysis, verdict: Verdict) -> str:
    """Return `rope (−0.188) and all_on (−0.282 nats) help.`"""
    cells = _with(analysis, verdict)
    if not cells:
        return ""
    shown, digits = cells[:NAMED], analysis.decimals
    effects = [f"{short(c.name, LONGEST)} ({signed(c.effect.mean if c.effect else None, digits)})" for c in shown]
    effects[-1] = f"{effects[-1][:-1]}{analysis.measure.short_unit})"
    verb = str(verdict) if len(cells) == 1 else str(verdict).removesuffix("s")
    return f"{_list(effects, len(cells))} {verb}."


def _others(analysis: Analysis, verdict: Verdict) -> str:
    cells = _with(analysis, verdict)
    if not cells:
        return ""
    names = _list([short(c.name, LONGEST) for c in cells[:NAMED]], len(cells))
    reasons = {verdicts.no_claim(cell) for cell in cells} if verdict is Verdict.NO_CLAIM else set()
    words = verdicts.word(cells[0], analysis) if verdict is Verdict.NO_EFFECT else OTHERS[verdict]
    return f"{names}: {reasons.pop() if len(reasons) == 1 else words}."


def _list(names: Sequence[str], total: int) -> str:
    """Return `a, b and c`, or `a, b and 9 more` of `total`."""
    rest = [f"{total - len(names)} more"] if total > len(names) else []
    *most, last = [*names, *rest]
    return f"{', '.join(most)} and {last}" if most else last
