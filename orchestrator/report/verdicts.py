"""Verdicts in words: what can be concluded about a cell or a contrast, and what limits the comparison."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import statistics as st
from ablatrix.orchestrator.report.analysis import MATCHED, Analysis, CellResult, Contrast
from ablatrix.orchestrator.report.decisions import Verdict
from ablatrix.orchestrator.report.formatting import count, p_text, percent, span_text

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.statistics import Effect
    from ablatrix.orchestrator.study.metric import Measure

ONE_SEED = "one seed only, so no conclusion can be drawn"
KIND_FLAGS = {
    "schedule": "changes the learning-rate schedule, not the model",
    "data": "changes the data",
    "mixed": "changes more than the model",
}


def sentence(cell: CellResult, analysis: Analysis) -> str:
    """Return the verdict as a sentence, without the cell's name."""
    word = cell.verdict
    if word is Verdict.BASELINE:
        return f"the reference: {cell.measure.name} {_mean_sd(cell)}."
    if word is Verdict.DIVERGED:
        return f"diverged in {len(cell.diverged)} of {count(cell.done, 'finished run')}, so there is no effect."
    if word is Verdict.NO_RESULT:
        return _no_result(cell, analysis)
    effect = cell.effect
    assert effect is not None
    if word is Verdict.IDENTICAL:
        text = "bit-identical to the baseline: its settings had no effect; check that they reach the trainer"
    elif word is Verdict.NO_CLAIM:
        text = f"{_direction(effect, cell)} ({ONE_SEED})"
    else:
        text = f"{word}: {_direction(effect, cell)} ({_evidence(cell, analysis)})"
    return f"{text}{_excluded(cell)}."


def _direction(effect: Effect, cell: CellResult) -> str:
    way = "lower" if effect.mean < 0 else "higher"
    return f"{cell.measure.name} {abs(effect.mean):.4f}{cell.measure.short_unit} {way} than the baseline's"


def _evidence(cell: CellResult, analysis: Analysis) -> str:
    effect = cell.effect
    assert effect is not None
    name, how = "95% confidence interval", count(effect.n, "paired seed")
    if effect.method == "prediction":
        name = "95% prediction interval"
        seeds = count(len(analysis.base.values) if analysis.base else 0, "baseline seed")
        how = f"{count(effect.n, 'run')} against the spread of {seeds}"
    p = f"p {_equals(effect.p_joint)} corrected for {count(analysis.family, 'comparison')}"
    return f"{name} {span_text(effect.low, effect.high, analysis.decimals)}, {p}, {how}"


def _equals(p: float | None) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _excluded(cell: CellResult) -> str:
    """Return the runs that the effect excludes."""
    total = count(len(cell.runs), "run")
    parts = [
        (len(cell.diverged), "diverged and {} excluded"),
        (_with_wrong_settings(cell), "ran with other settings and {} excluded"),
        (len(cell.runs) - cell.done, "without a result"),
    ]
    texts = [f"; {n} of {total} {words}".format("is" if n == 1 else "are") for n, words in parts if n]
    return "".join(texts)


def _no_result(cell: CellResult, analysis: Analysis) -> str:
    if cell.values:
        return f"no comparison: {analysis.reference or 'the baseline'} has no usable run."
    states = Counter(run.state for run in cell.runs)
    for state, number in (("diverged", len(cell.diverged)), ("with other settings", _with_wrong_settings(cell))):
        states[state] += number
        states["done"] -= number
    return "no result: " + ", ".join(f"{n} {state}" for state, n in states.items() if n > 0) + "."


def _with_wrong_settings(cell: CellResult) -> int:
    """Return the number of finished runs whose configuration lacks the cell's settings."""
    return sum(run.finished and not run.diverged and bool(run.wrong_overrides) for run in cell.runs)


def _mean_sd(cell: CellResult) -> str:
    if cell.mean is None:
        return "not known"
    unit = f" {cell.measure.unit}" if cell.measure.unit else ""
    if cell.sd is None:
        return f"{cell.mean:.4f}{unit} ({ONE_SEED})"
    return f"{cell.mean:.4f}{unit}, seed SD {cell.sd:.4f}, {len(cell.values)} seeds{_excluded(cell)}"


def contrast_verdict(contrast: Contrast, measure: Measure, worse: str, better: str, neither: str) -> str:
    """Return `better` or `worse` for a significant contrast, else `neither`, or why there is no verdict."""
    if contrast.effect is None:
        return "no result: runs are missing"
    if contrast.effect.p_joint is None:
        return ONE_SEED
    if contrast.effect.p_joint > st.ALPHA:
        return neither
    return better if measure.is_better(contrast.effect.mean) else worse


def flags(cell: CellResult, analysis: Analysis) -> list[str]:
    """Return caveats that limit the comparison of this cell with the baseline."""
    base = analysis.base
    if base is None or cell is base:
        return []
    found = []
    if cell.parameters and base.parameters and abs(cell.parameters / base.parameters - 1) > MATCHED:
        found.append(f"not parameter-matched ({percent(cell.parameters / base.parameters)} parameters)")
    if cell.kind in KIND_FLAGS:
        found.append(KIND_FLAGS[cell.kind])
    if cell.read_off:
        found.append(f"trained on another number of tokens: {cell.measure.name} interpolated at the smaller one")
    if cell.diverged:
        found.append(f"diverged: seed {', '.join(map(str, cell.diverged))}")
    wrong = sorted({key for run in cell.runs for key in run.wrong_overrides})
    if wrong:
        found.append(f"config.json lacks the cell's {', '.join(wrong)}")
    return found
