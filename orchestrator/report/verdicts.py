"""Verdicts in words: what can be concluded about a cell or a contrast, and what limits the comparison."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import sequential
from ablatrix.orchestrator.report.decisions import Verdict, fisher_p
from ablatrix.orchestrator.report.formatting import (
    bound_decimals,
    level_text,
    p_equals,
    percent,
    plain,
    signed,
    span_text,
)
from ablatrix.orchestrator.report.statistics import ALPHA
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.cell_result import CellResult
    from ablatrix.orchestrator.report.contrasts import Contrast
    from ablatrix.orchestrator.report.statistics import Effect
    from ablatrix.orchestrator.study.metric import Measure

MATCHED = 0.01  # parameter counts within 1% count as matched
ONE_SEED_WORD = "one seed only"
ONE_SEED = f"{ONE_SEED_WORD}, so no conclusion can be drawn"


def word(cell: CellResult, analysis: Analysis) -> str:
    """Return the verdict as displayed: `helps`, `no effect larger than 0.02 nats`, `not tested`."""
    if cell.verdict is Verdict.NO_EFFECT and analysis.margin is not None:
        return f"no effect larger than {analysis.margin:g}{cell.measure.short_unit}"
    if cell.verdict is Verdict.NO_CLAIM:
        return _no_claim(cell, analysis)[0]
    return cell.verdict


def sentence(cell: CellResult, analysis: Analysis) -> str:
    """Return the verdict as a sentence, without the cell's name."""
    verdict, effect = cell.verdict, cell.effect
    if verdict is Verdict.BASELINE:
        return f"the reference: {cell.measure.name} {_mean_sd(cell, analysis.decimals)}."
    if verdict is Verdict.DIVERGED:
        return f"diverged in {len(cell.diverged)} of {count(cell.done, 'finished run')}, so there is no effect."
    if effect is None:
        return _no_result(cell, analysis)
    direction = _direction(effect, cell, analysis.decimals)
    if verdict is Verdict.IDENTICAL:
        text = "bit-identical to the baseline: its settings had no effect; check that they reach the trainer"
    elif verdict is Verdict.NO_CLAIM:
        text = f"{direction} ({no_claim(cell, analysis)})"
    elif verdict is Verdict.UNSTABLE:
        text = f"unstable: {_stability(cell, analysis)}; among the runs that survived, {direction}"
        text += f" ({_evidence(cell, analysis)})" if effect.p_joint is not None else f" ({ONE_SEED})"
    else:
        text = f"{_conclusion(cell, analysis)}: {direction} ({_evidence(cell, analysis)})"
    return f"{text}{_without_outliers(cell, analysis)}{_excluded(cell)}."


def _conclusion(cell: CellResult, analysis: Analysis) -> str:
    """Return `helps by at least 0.0123 nats`, or just the verdict's word."""
    bound = cell.effect.at_least if cell.effect and cell.verdict.decided else None
    if bound is None:
        return word(cell, analysis)
    shown = plain(abs(bound), bound_decimals(bound, analysis.decimals))
    text = f"{cell.verdict} by at least {shown}{cell.measure.short_unit}"
    within = cell.effect.within if cell.effect else None
    if analysis.margin is not None and within is not None and within < analysis.margin:
        text += f", less than the margin of {analysis.margin:g}"
    return text


def no_claim(cell: CellResult, analysis: Analysis) -> str:
    """Return why there is an effect but no verdict."""
    return _no_claim(cell, analysis)[1]


def _no_claim(cell: CellResult, analysis: Analysis) -> tuple[str, str]:
    """Return (word, reason) of a cell that has an effect but no verdict."""
    if cell.incomparable:
        return "not comparable", f"not comparable: {cell.incomparable}"
    if cell.pending:
        return "pending", cell.pending
    if cell.effect is None or cell.effect.p_joint is None:
        return ONE_SEED_WORD, ONE_SEED
    return "not tested", f"not tested: the tests of this design are its {tested_tables(analysis)}"


def tested_tables(analysis: Analysis) -> str:
    """Return what a factorial or screening design tests in place of its cells."""
    return "main effects and pairs" if analysis.combinations.pairs else "main effects"


def _stability(cell: CellResult, analysis: Analysis) -> str:
    """Return `4 of 5 runs diverged (baseline: 0 of 5, Fisher's exact p = 0.048)`, and whether that may be chance."""
    base = analysis.base
    assert base is not None
    p = fisher_p(len(cell.diverged), cell.done, len(base.diverged), base.done)
    lost = f"{len(cell.diverged)} of {count(cell.done, 'run')} diverged"
    chance = ", too few to rule out chance" if p > ALPHA else ""
    return f"{lost} (baseline: {len(base.diverged)} of {base.done}, Fisher's exact p {p_equals(p)}{chance})"


def _direction(effect: Effect, cell: CellResult, digits: int) -> str:
    size, way = f"{abs(effect.mean):.{digits}f}", "lower" if effect.mean < 0 else "higher"
    if float(size) == 0:
        return f"{cell.measure.name} equal to the baseline's to {count(digits, 'decimal')}"
    return f"{cell.measure.name} {size}{cell.measure.short_unit} {way} than the baseline's"


def _evidence(cell: CellResult, analysis: Analysis) -> str:
    effect = cell.effect
    assert effect is not None
    span = span_text(effect.joint_low, effect.joint_high, analysis.decimals)
    interval = f"{level_text(effect.alpha)} interval {span}"
    p = f"p {p_equals(effect.p_joint)}"
    if analysis.family > 1:
        interval, p = f"simultaneous {interval}", f"{p} corrected for {analysis.family} comparisons"
    parts = [interval, p, f"{effect.n} of {count(len(cell.runs), 'run')}"]
    if effect.method == "paired t":
        parts.append("by its own paired t test, as its noise or the baseline's is larger than the others'")
    elif effect.method == "unpaired":
        parts.append("not paired, as it has too few seeds in common with the baseline")
    if cell.verdict is Verdict.INCONCLUSIVE and (effect.p_joint or 0) <= effect.alpha:
        parts.append(f"below the resolution of the values, {analysis.comparison.resolution:g}")
    if analysis.progress and (look := analysis.progress.describe(cell.name)):
        parts.append(look)
    if sequential.unplanned(analysis.study.plans) and (value := sequential.cell_e_value(cell, analysis)) is not None:
        parts.append(f"e-value {value:.3g}")
    return ", ".join(parts)


def _without_outliers(cell: CellResult, analysis: Analysis) -> str:
    """Return the effect without the outlier runs of the cell and of the baseline."""
    if cell.effect is None or cell.effect.without_outliers is None:
        return ""
    names = [
        f"seed {seed}" + (" of the baseline" if name == analysis.reference else "")
        for name, seed in analysis.comparison.outliers
        if name in (cell.name, analysis.reference)
    ]
    return f"; {signed(cell.effect.without_outliers, analysis.decimals)} without the outlying {' and '.join(names)}"


def _excluded(cell: CellResult) -> str:
    """Return the runs that the effect excludes."""
    total = count(len(cell.runs), "run")
    parts = [
        (0 if cell.verdict is Verdict.UNSTABLE else len(cell.diverged), "diverged and {} excluded"),
        (_with_wrong_settings(cell), "ran with different settings and {} excluded"),
        (_without_value(cell), f"finished without a final {cell.measure.name} and {{}} excluded"),
        (len(cell.runs) - cell.done, "without a result"),
    ]
    texts = [f"; {n} of {total} {words}".format("is" if n == 1 else "are") for n, words in parts if n]
    return "".join(texts)


def _no_result(cell: CellResult, analysis: Analysis) -> str:
    if cell.values:
        return f"no comparison: {analysis.reference or 'the baseline'} has no usable run."
    states = Counter(run.state for run in cell.runs)
    for state, number in (
        ("diverged", len(cell.diverged)),
        ("with different settings", _with_wrong_settings(cell)),
        (f"finished without a final {cell.measure.name}", _without_value(cell)),
    ):
        states[state] += number
        states["done"] -= number
    return "no result: " + ", ".join(f"{n} {state}" for state, n in states.items() if n > 0) + "."


def _with_wrong_settings(cell: CellResult) -> int:
    """Return the number of finished runs whose configuration lacks the cell's settings."""
    return sum(run.finished and not run.diverged and bool(run.wrong_overrides) for run in cell.runs)


def _without_value(cell: CellResult) -> int:
    """Return the number of finished runs of the cell's settings that recorded no value of the measure."""
    return sum(run.finished and not run.diverged and not run.wrong_overrides and run.value is None for run in cell.runs)


def _mean_sd(cell: CellResult, digits: int) -> str:
    if cell.mean is None:
        return "not known"
    unit = f" {cell.measure.unit}" if cell.measure.unit else ""
    if cell.sd is None:
        return f"{plain(cell.mean, digits)}{unit} ({ONE_SEED})"
    values = f"{plain(cell.mean, digits)}{unit}, seed SD {plain(cell.sd, digits + 1)}, {len(cell.values)} seeds"
    return values + _excluded(cell)


def contrast_verdict(contrast: Contrast, measure: Measure, worse: str, better: str, neither: str) -> str:
    """Return `better` or `worse` for a significant contrast, else `neither`, or why there is no verdict."""
    if contrast.effect is None:
        return "no result: runs are missing"
    if contrast.effect.p_joint is None:
        return ONE_SEED_WORD
    if not contrast.decided:
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
    if cell.kind not in ("", "model", "other"):
        found.append(f"changes the {cell.kind}" + ("" if "model" in cell.changes else ", not the model"))
    if cell.read_off:
        found.append(f"trained on a different number of tokens: {cell.measure.name} interpolated at the smaller number")
    if cell.incomparable:
        found.append(f"not comparable: {cell.incomparable}")
    if cell.diverged:
        found.append(f"diverged: seed{'s' * (len(cell.diverged) > 1)} {', '.join(map(str, cell.diverged))}")
    wrong = sorted({key for run in cell.runs for key in run.wrong_overrides})
    if wrong:
        found.append(f"config.json lacks the cell's {', '.join(wrong)}")
    return found
