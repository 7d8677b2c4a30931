"""The section of the report on a scale axis: effects against compute as a figure, tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ablatrix.orchestrator.report import across_sizes, scaling
from ablatrix.orchestrator.report.across_sizes import TENFOLD, Trend, find_trends
from ablatrix.orchestrator.report.content import Block, Heading, Row, Table
from ablatrix.orchestrator.report.figure_data import Figure, Line, Panel, Series
from ablatrix.orchestrator.report.formatting import (
    DASH,
    decimals_for,
    join_names,
    p_equals,
    plain,
    quantity,
    signed,
    span_text,
)
from ablatrix.orchestrator.report.palette import log_ticks
from ablatrix.orchestrator.report.statistics import t_quantile
from ablatrix.orchestrator.report.wording import cell_text, changes
from ablatrix.orchestrator.study.scale import FARTHEST

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.scaling import Gain

NAME = "scale"
MOST_PANELS = 12


def figure(analysis: Analysis) -> Figure | None:
    """Return the effect of each cell against training compute, with its line and band."""
    trends = [trend for trend in find_trends(analysis) if trend.line][:MOST_PANELS]
    if not trends:
        return None
    drawn = [(trend.cell, list(_lines(trend, style))) for style, trend in enumerate(trends, start=1)]
    unit = analysis.measure.unit or analysis.measure.name
    label = "training compute of the baseline (FLOPs)"
    ranges = [_range(lines, "x") for _, lines in drawn]
    panels = tuple(
        Panel(
            name,
            label,
            f"Δ {unit}",
            tuple(lines),
            along,
            _range(lines, "y"),
            zero=True,
            log_ticks=log_ticks(*map(math.exp, along)),
        )
        for along, (name, lines) in zip(ranges, drawn, strict=True)
    )
    side = "above" if analysis.measure.higher_is_better else "below"
    caption = (
        f"Effect on the {analysis.measure.name} at each size (cell − baseline of that size; "
        f"{side} 0 is better) against training compute. Points: pointwise 95% confidence intervals. Line: "
        "effect = a + b ln C by weighted least squares; band: 95% prediction interval for an effect measured with as "
        "many seeds; thin: extrapolated."
    )
    return Figure(NAME, title(trends), caption, panels)


def _lines(trend: Trend, style: int) -> Iterator[Line]:
    line = trend.line
    assert line is not None
    first = min(point.compute for point in line.points)
    ends = [(first, line.largest, False)]
    ends += [(line.largest, trend.ahead.compute, True)] if trend.ahead else []
    for start, end, light in ends:
        found = across_sizes.grid(line, start, end)
        values = np.array([[math.log(p.compute), p.effect, p.seen_low, p.seen_high] for p in found]).T
        yield Line("extrapolated" if light else "fitted", style, Series(*values), light=light, plain=True)
    points = sorted(line.points, key=lambda point: point.compute)
    half = [t_quantile(point.df) * point.error for point in points]
    x, y = np.log([point.compute for point in points]), np.array([point.effect for point in points])
    yield Line("measured", style, Series(x, y, y - half, y + half), dots=True, bars=True)


def _range(lines: Sequence[Line], axis: str) -> tuple[float, float]:
    found = [[0.0]] if axis == "y" else []
    for line in lines:
        series = line.series
        parts = [series.x] if axis == "x" else [series.y, series.low, series.high]
        found += [part.tolist() for part in parts if part is not None]
    low, high = min(map(min, found)), max(map(max, found))
    room = 0.05 * (high - low) or 0.1
    return low - room, high + room


def title(trends: Sequence[Trend]) -> str:
    """Return `With compute, the effect of rope grows; no change is shown for cosine`."""
    parts = changes(trends)
    others = [trend.cell for trend in trends if not trend.shown]
    parts += [f"no change is shown for {join_names(others)}"] if others else []
    text = "; ".join(parts)
    return f"With compute, {text}" if text.startswith("the effect") else text[:1].upper() + text[1:]


def blocks(analysis: Analysis, drawn: Figure | None) -> list[Block]:
    """Return the content of the section; [] without a scale axis."""
    if analysis.ladder is None:
        return []
    trends, shown = find_trends(analysis), analysis.ladder.shown
    intro = (
        f"Every cell is compared with the baseline of its own size. The other sections show {shown}, the largest size "
        "with results; run health and the list of runs cover all sizes."
    )
    found: list[Block] = [intro, *([drawn] if drawn else []), *[sentence(trend, analysis) for trend in trends]]
    if not any(trend.line for trend in trends):
        found.append("No line over compute is drawn: it needs the FLOPs of the runs and intervals at two sizes.")
    return [*found, Heading("Each size"), _size_table(trends, analysis)]


def sentence(trend: Trend, analysis: Analysis) -> str:
    """Return how a cell's effect changes with compute."""
    line = trend.line
    if line is None:
        return f"{trend.cell}: its effect does not have an interval at two sizes."
    digits, unit = _digits(trend), analysis.measure.short_unit
    low, high, p = line.slope_interval
    span = span_text(low * TENFOLD, high * TENFOLD, digits)
    change = f"{signed(line.slope * TENFOLD, digits)}{unit} per tenfold compute (95% interval {span}, p {p_equals(p)})"
    text = f"{trend.cell}: "
    if len(line.points) < scaling.FEWEST_SIZES:
        return f"{text}{change}; with only two sizes, no trend is tested."
    text += f"the effect {trend.direction} with compute, {change}." if trend.shown else f"no change is shown, {change}."
    if (line.lack_of_fit or 1) < 0.05:
        text += f" The effects do not lie on a line (p {p_equals(line.lack_of_fit)}); the band is widened accordingly."
    if ahead := trend.ahead:
        seen = span_text(ahead.seen_low, ahead.seen_high, digits)
        factor = f"{ahead.compute / line.largest:.3g}"
        text += f" Extrapolated to {factor} times the largest compute: {signed(ahead.effect, digits)}{unit} ({seen})."
    return text


def _digits(trend: Trend) -> int:
    assert trend.line is not None
    return decimals_for(max(trend.line.slope_error * TENFOLD, 1e-9), 3)


def _size_table(trends: Sequence[Trend], analysis: Analysis) -> Table:
    gains = {trend.cell: trend.gains for trend in trends}
    rows = []
    for size, found in analysis.by_size.items():
        compute = quantity(across_sizes.training_flops(found.base), "FLOPs")
        for cell in found.cells.values():
            text, base = cell_text(cell, found), cell is found.base
            gain = DASH if base else _gain_text(gains.get(cell.name, {}).get(size))
            rows.append(
                Row([size, cell.name, text.effect, text.verdict, text.interval, text.value, compute, gain], base)
            )
    name = analysis.measure.short_name
    head = ["size", "cell", "effect", "verdict", "95% interval", name, "compute", "compute-equivalent gain"]
    if all(row.cells[-1] == DASH for row in rows):
        head, rows = head[:-1], [Row(row.cells[:-1], row.base) for row in rows]
    return Table(head, rows, (0, 1, 3))


def _gain_text(gain: Gain | None) -> str:
    """Return `1.32× (1.05 to 1.60)`, with `extrapolated` if no size was measured at the baseline's compute."""
    if gain is None:
        return DASH
    if not math.isfinite(gain.value):
        return f"baseline needs over {FARTHEST:g}× the largest compute"
    ends = [_bounded(value) for value in (gain.value, gain.low, gain.high)]
    mark = ", extrapolated" if gain.extrapolated else ""
    return f"{ends[0]}× ({ends[1]} to {ends[2]}{mark})"


def _bounded(value: float) -> str:
    return plain(value, 2) if math.isfinite(value) else "beyond prediction"


def method(analysis: Analysis) -> str:
    """Return how effects were compared across sizes, for the methods section; '' without a scale axis."""
    if analysis.ladder is None:
        return ""
    count = len(analysis.by_size)
    curve = (
        "L = E + A C^-alpha, fitted to the baseline"
        if count >= scaling.FEWEST_FOR_CURVE
        else "log-log interpolation of the baseline's loss, as fewer than 4 sizes do not determine L = E + A C^-alpha"
    )
    return (
        f"Cells were compared within each of {count} sizes. Effects over training compute C (the trainer's count of "
        "FLOPs, else 6 N D) follow a + b ln C by least squares weighted by 1 / SE^2, with the covariance multiplied by "
        "chi^2 / (sizes - 2) where that exceeds 1; b = 0 is tested by t with the degrees of freedom of the pooled "
        "noise. The compute-equivalent gain is the compute at which the baseline reaches the cell's loss, divided by "
        f"the cell's compute, by {curve}; its interval is that of the effect. Nothing is predicted beyond "
        f"{FARTHEST:g} times the largest compute."
    )
