"""Forest plots that double as tables: effects of cells, main effects, leave-one-out effects, interactions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import formatting, verdicts, wording
from ablatrix.orchestrator.report.figure_data import Bounds, Figure, Forest, ForestRow
from ablatrix.orchestrator.study import screening
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.cell_result import CellResult
    from ablatrix.orchestrator.report.contrasts import Contrast
    from ablatrix.orchestrator.report.statistics import Effect
    from ablatrix.orchestrator.study.metric import Measure

LEAST_SIDE = 0.25  # of an axis, fraction on each side of 0
MANY_CELLS = 12  # from this many on, cells are sorted by effect and details are folded


def effects(analysis: Analysis, headline: str) -> Figure:
    """Return the forest plot of all cells, which is also the main table. headline: its title."""
    measure, cells = analysis.measure, ordered(analysis)
    columns = {
        "effect": "effect",
        "verdict": "verdict",
        **({analysis.interval_name: "interval"} if analysis.detectable is not None else {}),
        measure.short_name: "value",
        "runs": "runs",
        "parameters": "parameters",
    }
    shown = ([analysis.base] if analysis.base else []) + cells
    rows = [effect_row(cell, analysis, columns.values()) for cell in shown]
    band = analysis.detectable if analysis.margin is None else analysis.margin
    forest = Forest(
        tuple(rows),
        tuple(columns),
        replace(measure, name=f"{measure.name}, difference from baseline").label,
        forest_limits(rows, band),
        band,
        measure.sides("better", "worse"),
    )
    caption = _effects_caption(analysis)
    if any(any(forest.cut(row)) for row in rows):
        caption += " Arrow: the interval goes on beyond the axis."
    return Figure("effects", headline, caption, forest=forest)


def ordered(analysis: Analysis) -> list[CellResult]:
    """Return the compared cells in the study's order, or sorted by effect, best first, if there are many."""
    cells = analysis.compared
    if len(cells) < MANY_CELLS - 1:
        return cells
    sign = -1.0 if analysis.measure.higher_is_better else 1.0
    return sorted(cells, key=lambda c: (c.effect is None, sign * c.effect.mean if c.effect else 0.0))


def effect_row(cell: CellResult, analysis: Analysis, columns: Iterable[str], label: str = "") -> ForestRow:
    """Return a cell as a row. columns: fields of its CellText; label: shown instead of its name."""
    text, effect = wording.cell_text(cell, analysis), cell.effect
    mean, values = (effect.mean, effect.values) if effect else (None, ())
    return ForestRow(
        label or cell.name,
        cell.verdict,
        tuple(getattr(text, name) for name in columns),
        mean,
        *_bounds_of(effect),
        values,
        base=cell is analysis.base,
    )


def _bounds_of(effect: Effect | None) -> tuple[Bounds | None, Bounds | None]:
    """Return the pointwise and the simultaneous interval, each None if unknown."""
    if effect is None or effect.low is None or effect.high is None:
        return None, None
    outer = None if effect.joint_low is None or effect.joint_high is None else (effect.joint_low, effect.joint_high)
    return (effect.low, effect.high), outer


def _effects_caption(analysis: Analysis) -> str:
    measure = analysis.measure
    caption = (
        f"Effect of each cell on the {measure.name} at a matched number of {analysis.budget} (cell − baseline; "
        f"{measure.better_side})."
    )
    if analysis.detectable is None:
        return caption + (f" There are no intervals: {verdicts.ONE_SEED}." if analysis.single_seed else "")
    caption += f" {runs_per_cell(analysis)} Marker: mean; {_bars(analysis)}; ticks below: single seeds."
    if analysis.factorial:
        caption += f" {untested(analysis)}"
    if len({frozenset(cell.values) for cell in analysis.cells.values() if cell.values}) > 1:
        caption += f" Effects are adjusted for the seeds that a cell lacks, {measure.short_name} is not."
    if any(cell.read_off for cell in analysis.cells.values()):
        caption += (
            f" {measure.short_name}: where a cell and the baseline trained on different numbers of {analysis.budget}, "
            "at the smaller number; in parentheses: after full training."
        )
    if analysis.margin is not None:
        return f"{caption} Shaded: the margin of ±{analysis.margin:g}{measure.short_unit}."
    shown = f"{analysis.detectable:.{analysis.decimals}f}{measure.short_unit}"
    return f"{caption} Shaded: differences under {shown}, too small for this study to show."


def _bars(analysis: Analysis) -> str:
    """Return what the bars of the cells' intervals mean."""
    decides = "" if analysis.factorial else ", which decides the verdict"
    over = f" simultaneous over {analysis.family} comparisons" if analysis.family > 1 else ""
    if analysis.progress:
        levels = [
            f"{formatting.level_text(a)} at look {i}" for i, a in enumerate(analysis.progress.looks.alpha, start=1)
        ]
        decides += f", at the level of the look at which the cell stopped ({formatting.join_names(levels)})"
    elif not over:
        return f"bar and table: 95% confidence interval{decides}"
    return f"thick bar: pointwise 95% confidence interval; thin bar and table: {analysis.interval_name}{over}{decides}"


def untested(analysis: Analysis) -> str:
    """Return why the single cells of a factorial or screening design have no verdict."""
    tables = verdicts.tested_tables(analysis)
    order = "main effects are tested first, then pairs" if " and " in tables else "main effects are tested"
    return f"Cells are described, not tested: {order}, each of which uses all runs of the design."


def runs_per_cell(analysis: Analysis) -> str:
    """Return `n = 3 runs per cell.`"""
    sizes = sorted({len(cell.values) for cell in analysis.cells.values() if cell.values})
    if not sizes:
        return ""
    some = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"n = {some} run{'s'[: sizes != [1]]} per cell."


def forest_limits(rows: Sequence[ForestRow], band: float | None = None) -> Bounds:
    """Return a range that shows every effect, with room for a word on both sides of 0.

    Intervals far wider than most are cut off.
    """
    centers = [r.effect for r in rows if r.effect is not None]
    far = max([abs(c) for c in centers] + [band or 0.0], default=0.0) or 1e-3
    bounds = [end for r in rows for end in (r.outer or r.inner or ())]
    far = max(far, sorted(map(abs, bounds))[len(bounds) // 2] / 3) if bounds else far
    ends = bounds + centers + [-(band or 0.0), band or 0.0]
    low, high = max(min(ends, default=0.0), -4 * far), min(max(ends, default=0.0), 4 * far)
    room = 0.06 * (high - low) or 1e-3
    return beside_zero(min(low, 0.0) - room, max(high, 0.0) + room)


def beside_zero(low: float, high: float) -> Bounds:
    """Return a range around 0 with at least LEAST_SIDE of it on each side, so that both can be named."""
    least = LEAST_SIDE / (1 - LEAST_SIDE)
    return min(low, -least * high), max(high, -least * low)


def contrast_columns(comparisons: int) -> tuple[str, str, str]:
    """Return the columns of a contrast's row after its effect."""
    return "verdict", "95% interval", formatting.p_name(comparisons)


_HELPS, _SYNERGY, _SUM = ("helps", "hurts"), ("synergy", "conflict"), ("better than the sum", "worse than the sum")


def main_effects(analysis: Analysis) -> Figure | None:
    """Return the main effects of a factorial or screening design."""
    screen = analysis.combinations.screen
    others = f"the {len(screen.cells)} cells of the design" if screen else "all combinations of the others"
    caption = (
        f"Each feature's effect on the {analysis.measure.name}, averaged over {others}; {analysis.measure.better_side}."
    )
    if screen and (warning := screening.alias_warning(screen)):
        caption += f" {warning}"
    texts = ("Main effects", caption, "main effect", "feature")
    return _contrasts(analysis, "main_effects", texts, [analysis.main_effects])


def left_out(analysis: Analysis) -> Figure | None:
    """Return what each feature adds when all others are on."""
    caption = "All features on, minus all but this one: what the feature adds when all others are on."
    return _contrasts(analysis, "left_out", ("Leave one out", caption, "effect", "feature"), [analysis.left_out])


def combinations(analysis: Analysis) -> Figure | None:
    """Return the interactions: effects of combinations beyond the sum of their features."""
    side = analysis.measure.better_side.partition(" is ")[0]
    caption = (
        "Effect of the combination minus the sum of the effects of its parts; at 0 the effects add up, "
        f"{side} the combination is better than the sum."
    )
    tables = [table for table in (analysis.combinations.pairs, analysis.combinations.together) if table]
    texts = ("Interactions", caption, "interaction", "combination")
    return _contrasts(analysis, "interactions", texts, tables, _SYNERGY)


def _contrasts(
    analysis: Analysis,
    name: str,
    texts: tuple[str, str, str, str],
    tables: Sequence[Sequence[Contrast]],
    words: tuple[str, str] = _HELPS,
) -> Figure | None:
    """Return the contrasts of one or several tables as a figure. texts: title, caption, axis label, label of rows."""
    title, caption, label, first = texts
    contrasts = [contrast for table in tables for contrast in table]
    if not any(c.effect for c in contrasts):
        return None
    measure, digits = analysis.measure, analysis.decimals
    readings = (*(_SUM if words == _SYNERGY else words), "inconclusive")
    rows = tuple(contrast_row(c, measure, readings, digits) for c in contrasts)
    if any(row.outer for row in rows):
        caption += _contrast_bars([len(table) for table in tables])
        title = f"{title}: {_claim(analysis, contrasts)}"
    axis = f"{label} on {measure.label}" if words == _HELPS else f"{label}, {measure.label}"
    ends = measure.sides(*(words if words == _SYNERGY else ("better", "worse")))
    head: tuple[str, ...] = ("effect", *contrast_columns(len(contrasts)))
    if not any(row.inner for row in rows):
        head, rows = head[:2], tuple(replace(row, cells=row.cells[:2]) for row in rows)
    forest = Forest(rows, head, axis, forest_limits(rows), ends=ends, first=first)
    return Figure(name, title, caption, forest=forest)


def _contrast_bars(sizes: Sequence[int]) -> str:
    """Return what the bars mean. sizes: number of contrasts of each table, which is corrected on its own."""
    if sizes == [1]:
        return " Bar: 95% confidence interval."
    text = f" Thick bar: pointwise 95% confidence interval; thin bar: 95% interval simultaneous over {sizes[0]} "
    return text + ("comparisons." if len(sizes) == 1 else "pairs; the combination of all features is tested alone.")


def _claim(analysis: Analysis, contrasts: Sequence[Contrast]) -> str:
    """Return `largest for swiglu × rope, −0.042 nats`, among the significant contrasts."""
    shown = [(c.name, c.effect.mean) for c in contrasts if c.effect and c.decided]
    if not shown:
        return "none is significant"
    name, most = max(shown, key=lambda pair: abs(pair[1]))
    name = formatting.shorten((c.name for c in contrasts), wording.LONGEST)[name]
    return f"largest for {name}, {formatting.signed(most, analysis.decimals)}{analysis.measure.short_unit}"


def contrast_row(contrast: Contrast, measure: Measure, words: tuple[str, str, str], digits: int) -> ForestRow:
    """Return a contrast as a row of its effect and `contrast_columns`. words: for better, worse and neither."""
    effect, (better, worse, neither) = contrast.effect, words
    reading = verdicts.contrast_verdict(contrast, measure, worse, better, neither)
    reading += f" ({count(contrast.missing, 'run')} missing)" if contrast.missing else ""
    if effect is None:
        return ForestRow(contrast.name, "no result", (formatting.DASH, reading, formatting.DASH, formatting.DASH))
    interval = formatting.span_text(effect.joint_low, effect.joint_high, digits)
    cells = (formatting.signed(effect.mean, digits), reading, interval, formatting.p_text(effect.p_joint))
    verdict = {better: "helps", worse: "hurts"}.get(reading.partition(" (")[0], "inconclusive")
    return ForestRow(contrast.name, verdict, cells, effect.mean, *_bounds_of(effect), effect.values)
