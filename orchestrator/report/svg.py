"""The page's drawings: SVG whose text keeps its size at any width, in the colours of the page's style sheet.

Places across are percentages and places down are pixels, so a drawing fits a phone and a screen without scaling its
text; curves alone are stretched. No style attribute is written: the page's security policy allows none.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape as as_html

import numpy as np

from ablatrix.orchestrator.report.figures import COLOURS, DASHES, MARKERS
from ablatrix.orchestrator.report.plots import Figure, Forest, ForestRow, Line, Panel, ticks
from ablatrix.orchestrator.report.wording import plain, quantity, signed, tick_labels
from ablatrix.trainer.rundir.console import visible

HEIGHT, BELOW, ABOVE = 150, 36, 8  # pixels: plot, axis under it, room over it
ROW = 26

# Outlines of matplotlib's markers of the same name, 8 pixels across
_SHAPES = {
    "o": '<circle r="3.4"/>',
    "s": '<rect x="-3.1" y="-3.1" width="6.2" height="6.2"/>',
    "^": '<path d="M0-4 3.8 3H-3.8Z"/>',
    "D": '<path d="M0-4.2 4.2 0 0 4.2-4.2 0Z"/>',
    "v": '<path d="M0 4 3.8-3H-3.8Z"/>',
    "P": '<path d="M-1.3-4h2.6v2.7H4v2.6H1.3V4h-2.6V1.3H-4v-2.6h2.7Z"/>',
    "X": '<path d="M-4-2.2-2.2-4 0-1.8 2.2-4 4-2.2 1.8 0 4 2.2 2.2 4 0 1.8-2.2 4-4 2.2-1.8 0Z"/>',
    "<": '<path d="M-4 0 3-3.8V3.8Z"/>',
    ">": '<path d="M4 0-3-3.8V3.8Z"/>',
    "p": '<path d="M0-4 3.8-1.2 2.4 3.2H-2.4L-3.8-1.2Z"/>',
    "h": '<path d="M0-4 3.5-2V2L0 4-3.5 2V-2Z"/>',
}


def symbols() -> str:
    """The markers, defined once a page."""
    defined = "".join(f'<g id="m{i}">{_SHAPES[m]}</g>' for i, m in enumerate(MARKERS))
    return f'<svg class="defs" width="0" height="0" aria-hidden="true"><defs>{defined}</defs></svg>'


def escape(text: str) -> str:
    """Text that shows in an element or in an attribute, and nothing more."""
    return as_html(visible(text))


def classes(index: int) -> str:
    """Classes of colour and dash for a style; 0 is the baseline in the ink of the page."""
    if index == 0:
        return "c0 k0"
    i = index - 1
    return f"c{i % len(COLOURS) + 1} k{i // len(COLOURS) % len(DASHES)}"


def marker(index: int) -> int:
    return 0 if index == 0 else index % len(MARKERS)


def render(figure: Figure) -> str:
    """A figure as HTML with SVG, without its caption."""
    if figure.forest:
        return _forest(figure.forest)
    return f'<div class="panels">{"".join(_panel(p) for p in figure.panels)}</div>{_legend(figure)}'


# ---- panels ----------------------------------------------------------------------------------------------------------


Across = Callable[[float], str]
Down = Callable[[float], float]


def _scales(panel: Panel) -> tuple[Across, Down]:
    """Where a value stands: across in percent of the plot, down in pixels."""
    (x0, x1), (y0, y1) = panel.x_range, panel.y_range
    return lambda x: f"{(x - x0) / (x1 - x0) * 100:.2f}%", lambda y: ABOVE + (y1 - y) / (y1 - y0) * HEIGHT


def _panel(panel: Panel) -> str:
    across, down = _scales(panel)
    name, height = escape(panel.title), ABOVE + HEIGHT + BELOW
    y_ticks = ticks(*panel.y_range, 5)
    left = [
        f'<text x="50" y="{down(y) + 4:.1f}" text-anchor="end">{text}</text>'
        for y, text in zip(y_ticks, tick_labels(y_ticks), strict=True)
    ]
    middle = ABOVE + HEIGHT / 2
    left.append(f'<text class="lab" transform="translate(11 {middle}) rotate(-90)">{escape(panel.y_label)}</text>')
    parts = [f'<line class="grid" x1="0" x2="100%" y1="{down(y):.1f}" y2="{down(y):.1f}"/>' for y in y_ticks]
    parts.append(_below(panel, across))
    if panel.zero:
        parts.append(f'<line class="zero" x1="0" x2="100%" y1="{down(0):.1f}" y2="{down(0):.1f}"/>')
    parts.append(
        f'<svg y="{ABOVE}" width="100%" height="{HEIGHT}" viewBox="0 0 1000 {HEIGHT}" preserveAspectRatio="none">'
        + "".join(_curve(line, panel) for line in panel.lines)
        + "</svg>"
    )
    parts += [_marks(line, panel, across, down) for line in panel.lines]
    return (
        f'<div class="panel"><h4>{name}</h4><div class="axes" role="img" aria-label="{name}">'
        f'<svg class="ya" width="54" height="{height}">{"".join(left)}</svg>'
        f'<svg class="pa" height="{height}">{"".join(parts)}</svg></div></div>'
    )


def _below(panel: Panel, across: Across) -> str:
    """Grid lines across, their numbers and the label of the axis."""
    base, marks = ABOVE + HEIGHT, ticks(*panel.x_range, 4)
    lines = [f'<line class="grid" x1="{across(x)}" x2="{across(x)}" y1="{ABOVE}" y2="{base}"/>' for x in marks]
    texts = [
        f'<text x="{across(x)}" y="{base + 15}" text-anchor="middle">{text}</text>'
        for x, text in zip(marks, tick_labels(marks), strict=True)
    ]
    label = f'<text class="lab" x="50%" y="{base + 31}">{escape(panel.x_label)}</text>'
    return "".join([*lines, *texts, label])


def _curve(line: Line, panel: Panel) -> str:
    series = line.series
    x = (series.x - panel.x_range[0]) / (panel.x_range[1] - panel.x_range[0]) * 1000

    def y(values: np.ndarray) -> np.ndarray:
        scaled = (panel.y_range[1] - values) / (panel.y_range[1] - panel.y_range[0]) * HEIGHT
        return np.clip(scaled, -HEIGHT, 2 * HEIGHT)

    parts = []
    if series.low is not None and series.high is not None:
        known = np.isfinite(series.low) & np.isfinite(series.high)
        outline = [*_points(x[known], y(series.low[known])), *reversed(_points(x[known], y(series.high[known])))]
        parts.append(f'<polygon class="band {classes(line.style)}" points="{" ".join(outline)}"/>')
    kind = "line light" if line.light else "line"
    for part in np.split(np.arange(len(x)), np.flatnonzero(~np.isfinite(series.y))):
        part = part[np.isfinite(series.y[part])]
        if len(part) > 1:
            points = " ".join(_points(x[part], y(series.y[part])))
            parts.append(f'<polyline class="{kind} {classes(line.style)}" points="{points}"/>')
    return f"<g><title>{escape(line.label)}</title>{''.join(parts)}</g>"


def _points(x: np.ndarray, y: np.ndarray) -> list[str]:
    return [f"{a:.0f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]


def _marks(line: Line, panel: Panel, across: Across, down: Down) -> str:
    """Markers on the line: at every point of a short marked line, else eight of them; none on a light one."""
    if line.light:
        return ""
    x, y = line.series.x, line.series.y
    every = 1 if line.dots and len(x) <= 12 else max(1, len(x) // 8)
    inside = (y >= panel.y_range[0]) & (y <= panel.y_range[1])
    found = [i for i in range(0 if every == 1 else every // 2, len(x), every) if inside[i]]
    return "".join(
        f'<use class="mark {classes(line.style)}" href="#m{marker(line.style)}"'
        f' x="{across(x[i])}" y="{down(y[i]):.1f}">'
        f"<title>{escape(line.label)}: {plain(y[i])} at {quantity(x[i])}</title></use>"
        for i in found
    )


def _legend(figure: Figure) -> str:
    if not figure.legend:
        return ""
    items = "".join(
        f'<li><svg width="34" height="12"><line class="line {classes(i)}" x1="0" x2="34" y1="6" y2="6"/>'
        f'<use class="mark {classes(i)}" href="#m{marker(i)}" x="17" y="6"/></svg>{escape(name)}</li>'
        for name, i in figure.legend
    )
    return f'<ul class="legend">{items}</ul>'


# ---- forest ----------------------------------------------------------------------------------------------------------


def _forest(forest: Forest) -> str:
    low, high = forest.limits

    def across(x: float) -> str:
        return f"{min(max((x - low) / (high - low), 0.0), 1.0) * 100:.2f}%"

    back = ""
    if forest.band:
        width = (min(forest.band, high) - max(-forest.band, low)) / (high - low) * 100
        back = f'<rect class="noise" x="{across(-forest.band)}" y="0" width="{width:.2f}%" height="100%"/>'
    back += f'<line class="zero" x1="{across(0)}" x2="{across(0)}" y1="0" y2="100%"/>'
    rows = [_forest_row(row, forest, back, across) for row in forest.rows]
    head = f'<text class="lab start" x="0" y="13">← {escape(forest.ends[0])}</text>'
    head += f'<text class="lab end" x="100%" y="13">{escape(forest.ends[1])} →</text>'
    marks = ticks(low, high, 5) if any(row.effect is not None for row in forest.rows) else [0.0]
    axis = "".join(
        f'<line class="tick" x1="{across(t)}" x2="{across(t)}" y1="0" y2="5"/>'
        f'<text x="{across(t)}" y="18" text-anchor="middle">{text}</text>'
        for t, text in zip(marks, tick_labels(marks), strict=True)
    )
    axis += '<line class="tick" x1="0" x2="100%" y1="0" y2="0"/>'
    axis += f'<text class="lab" x="50%" y="35">{escape(forest.x_label)}</text>'
    return (
        f'<div class="forest"><div class="frow"><svg class="fp" height="18">{head}</svg></div>{"".join(rows)}'
        f'<div class="frow axis"><svg class="fp" height="40">{axis}</svg></div></div>'
    )


def _forest_row(row: ForestRow, forest: Forest, back: str, across: Across) -> str:
    drawn = back + (_forest_marks(row, forest, across) if row.effect is not None else "")
    return (
        f'<div class="frow"><span class="fn">{escape(row.label)}</span><svg class="fp" height="{ROW}">{drawn}</svg>'
        f'<span class="ft">{escape(row.text)}</span></div>'
    )


def _forest_marks(row: ForestRow, forest: Forest, across: Across) -> str:
    assert row.effect is not None
    low, high, parts = *forest.limits, []
    middle = ROW / 2
    if row.low is not None and row.high is not None:
        parts.append(f'<line class="ci" x1="{across(row.low)}" x2="{across(row.high)}" y1="{middle}" y2="{middle}"/>')
        for end, cut, arrow in ((row.low, row.low < low, "<"), (row.high, row.high > high, ">")):
            if cut:  # an arrow head: the interval goes on beyond the axis
                parts.append(f'<use class="ink" href="#m{MARKERS.index(arrow)}" x="{across(end)}" y="{middle}"/>')
            else:
                parts.append(
                    f'<line class="ci" x1="{across(end)}" x2="{across(end)}" y1="{middle - 4}" y2="{middle + 4}"/>'
                )
        parts += [f'<line class="seed" x1="{across(v)}" x2="{across(v)}" y1="19" y2="24"/>' for v in row.values]
    shown = {"helps": "good", "synergy": "good", "hurts": "bad", "conflict": "bad"}.get(row.word, "none")
    shape = {"good": 0, "bad": 1}.get(shown, 3)
    parts.append(
        f'<use class="point {shown}" href="#m{shape}" x="{across(row.effect)}" y="{middle}">'
        f"<title>{escape(row.label)}: {signed(row.effect)}</title></use>"
    )
    return "".join(parts)
