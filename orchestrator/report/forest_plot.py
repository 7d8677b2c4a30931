"""Draw a forest plot with the columns of its table beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.report.formatting import short
from ablatrix.orchestrator.report.palette import BAND, COLORS, GREY, INK, PAPER, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

    from ablatrix.orchestrator.report.figure_data import Forest, ForestRow

# inches
ROW, HEAD, AXIS, TITLE_LINE, MARGIN, GAP = 0.24, 0.26, 0.5, 0.19, 0.1, 0.14
LEAST_BARS = 2.2  # width of the bars; columns that leave less are not drawn
MOST_ROWS = 60  # of one picture; the page and comparison.csv have all
LABEL = 32  # characters of a name
SIZE = 8.0  # points
WORDS = ("verdict", "reading")  # columns that are aligned to the left


def fill(canvas: Canvas, title: str, forest: Forest, width: float) -> None:
    """Draw a title and the plot as a whole figure, `width` inches wide."""
    lines = wrap(title, width)
    shown = replace(forest, rows=forest.rows[:MOST_ROWS])
    more = len(forest.rows) - len(shown.rows)
    height = (len(lines) + bool(more)) * TITLE_LINE + MARGIN + height_of(len(shown.rows))
    canvas.set_size_inches(width, height)
    if more:
        note = f"The first {len(shown.rows)} of {len(forest.rows)} rows; {more} more are in comparison.csv."
        canvas.text(MARGIN / width, 0.05 / height, note, color=GREY)
    canvas.text(MARGIN / width, 1 - 0.04 / height, "\n".join(lines), va="top", weight="bold", linespacing=1.35)
    place(canvas, shown, MARGIN, TITLE_LINE * bool(more), width - 2 * MARGIN)


def wrap(text: str, width: float, size: float = SIZE) -> list[str]:
    """Return text as lines of bold letters that fit into `width` inches."""
    return textwrap.wrap(text, int(width / (0.0098 * size)), break_on_hyphens=False) or [""]


def height_of(rows: int, row: float = ROW) -> float:
    """Return the height in inches of a plot of so many rows, each `row` inches high."""
    return HEAD + row * rows + AXIS


def place(canvas: Canvas, forest: Forest, left: float, bottom: float, width: float, *, row: float = ROW) -> None:
    """Draw the plot into a canvas at these inches from its lower left corner. row: height of a row in inches."""
    across, up = canvas.get_size_inches()
    labels = [short(row.label, LABEL) for row in forest.rows]
    first = _widest(canvas, [forest.first, *labels])
    widths = [_widest(canvas, [name, *(r.cells[i] for r in forest.rows)]) for i, name in enumerate(forest.head)]
    shown = len(widths)
    while shown > 1 and width - first - GAP - sum(w + GAP for w in widths[:shown]) < LEAST_BARS:
        shown -= 1
    begin = left + first + GAP
    bars = width - first - GAP - sum(w + GAP for w in widths[:shown])
    axes = canvas.add_axes((begin / across, (bottom + AXIS) / up, bars / across, row * len(forest.rows) / up))
    _draw_axes(axes, forest)
    for i, (label, effect) in enumerate(zip(labels, forest.rows, strict=True)):
        _draw_row(axes, i, effect, forest)
        _write(axes, -(first + GAP), i, label)
    _write(axes, -(first + GAP), -0.85, forest.first, color=GREY)
    _write(axes, 0, -0.85, f"← {forest.ends[0]}", color=GREY)
    _write(axes, bars, -0.85, f"{forest.ends[1]} →", color=GREY, ha="right")
    at = bars + GAP
    for i in range(shown):
        right = forest.head[i] not in WORDS
        x = at + widths[i] if right else at
        texts = [(-0.85, forest.head[i], GREY), *((j, row.cells[i], INK) for j, row in enumerate(forest.rows))]
        for y, text, color in texts:
            _write(axes, x, y, text, color=color, ha="right" if right else "left")
        at += widths[i] + GAP


def _widest(canvas: Canvas, texts: Sequence[str]) -> float:
    """Return the width of the longest text in inches."""
    renderer: Any = canvas.canvas.get_renderer()  # type: ignore[attr-defined]
    widths = []
    for text in set(texts):
        made = canvas.text(0, 0, text, fontsize=SIZE)
        widths.append(made.get_window_extent(renderer).width / canvas.dpi)
        made.remove()
    return max(widths)


def _write(axes: Axes, x: float, row: float, text: str, **style: Any) -> None:
    """Write a text `x` inches right of the axes' left edge, in the middle of a row."""
    place: Any = ("axes fraction", "data")
    axes.annotate(
        text,
        (0, row),
        xycoords=place,
        xytext=(72 * x, 0),
        textcoords="offset points",
        va="center",
        fontsize=SIZE,
        annotation_clip=False,
        **style,
    )


def _draw_axes(axes: Axes, forest: Forest) -> None:
    if forest.band:
        axes.axvspan(-forest.band, forest.band, color=BAND, linewidth=0, zorder=0)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    axes.set_ylim(len(forest.rows) - 0.5, -0.5)
    axes.set_xlim(*forest.limits)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(forest.x_label)
    known = any(row.effect is not None for row in forest.rows)
    axes.set_xticks(ticks(forest.limits, 5) if known else [0])


def _draw_row(axes: Axes, y: float, row: ForestRow, forest: Forest) -> None:
    if row.effect is None:
        return
    color = {"helps": COLORS[0], "hurts": COLORS[1], "unstable": COLORS[1]}.get(row.verdict, GREY)
    low, high = forest.limits
    for bounds, thickness in ((row.outer, 1.0), (row.inner, 3.4)):
        if bounds:
            ends = [min(max(end, low), high) for end in bounds]
            axes.plot(ends, [y, y], color=color, linewidth=thickness, solid_capstyle="butt", zorder=2)
    for end, cut, mark in zip(row.outer or (), (low, high), "<>", strict=False):
        if (end < cut) if mark == "<" else (end > cut):
            axes.plot([cut], [y], marker=mark, color=color, markersize=4.5, clip_on=False, zorder=3)
    inside = [value for value in row.values if low <= value <= high]
    axes.plot(inside, [y + 0.32] * len(inside), "|", color=GREY, markersize=3, markeredgewidth=0.6, zorder=2)
    if low <= row.effect <= high:
        shape = {"helps": "o", "hurts": "s"}.get(row.verdict, "D")
        face = color if row.verdict in ("helps", "hurts") else PAPER
        axes.plot([row.effect], [y], shape, color=color, markerfacecolor=face, markersize=5.2, zorder=4)
