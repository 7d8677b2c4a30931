"""Draw a forest plot with the columns of its table beside it."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.font_manager import FontProperties
from matplotlib.transforms import ScaledTranslation

from ablatrix.orchestrator.report.formatting import shorten
from ablatrix.orchestrator.report.palette import BAND, COLORS, GREY, INK, PAPER, label_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

    from ablatrix.orchestrator.report.figure_data import Forest, ForestRow

# inches
ROW, HEAD, AXIS, TITLE_LINE, MARGIN, GAP = 0.24, 0.26, 0.5, 0.19, 0.1, 0.14
LEAST_BARS = 2.2  # width of the bars; columns that leave less are not drawn
MOST_ROWS = 36  # in one image, which fits on a page; report.html and comparison.csv have all
LABEL = 32  # longest name, in characters
MOST_OF_LABELS = 0.5  # fraction of the width
SIZE = 8.0  # points
UNDECIDED = (GREY, "D", PAPER)  # color, marker and marker face
STYLES = {
    "helps": (COLORS[0], "o", COLORS[0]),
    "hurts": (COLORS[1], "s", COLORS[1]),
    "unstable": (COLORS[1], "D", PAPER),
}


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
    """Wrap bold text to `width` inches, in as few lines as possible and of about equal length."""
    longest = int(width / (0.0098 * size))
    count = len(textwrap.wrap(text, longest, break_on_hyphens=False))
    for most in range(len(text) // max(count, 1), longest + 1):
        lines = textwrap.wrap(text, max(most, 1), break_on_hyphens=False, break_long_words=most == longest)
        if len(lines) <= count and max(map(len, lines), default=0) <= longest:
            return lines or [""]
    return [""]


def height_of(rows: int, row: float = ROW) -> float:
    """Return the height in inches of a plot with `rows` rows, each `row` inches high."""
    return HEAD + row * rows + AXIS


def place(canvas: Canvas, forest: Forest, left: float, bottom: float, width: float, *, row: float = ROW) -> None:
    """Draw the plot into a canvas, placed in inches from its lower left corner. row: height of a row in inches."""
    across, up = canvas.get_size_inches()
    names = shorten((row.label for row in forest.rows), LABEL)
    labels = [names[row.label] for row in forest.rows]
    first = min(widest(canvas, [forest.first, *labels]), MOST_OF_LABELS * width)
    widths = [widest(canvas, [name, *(r.cells[i] for r in forest.rows)]) for i, name in enumerate(forest.head)]
    shown = len(widths)
    while shown > 1 and width - first - GAP - sum(w + GAP for w in widths[:shown]) < LEAST_BARS:
        shown -= 1
    begin = left + first + GAP
    bars = width - first - GAP - sum(w + GAP for w in widths[:shown])
    axes = canvas.add_axes((begin / across, (bottom + AXIS) / up, bars / across, row * len(forest.rows) / up))
    _draw_axes(axes, forest)
    _draw_rows(axes, forest)
    for i, label in enumerate(labels):
        _write(axes, -(first + GAP), i, label)
    _write(axes, -(first + GAP), -0.85, forest.first, color=GREY)
    _write(axes, 0, -0.85, f"← {forest.ends[0]}", color=GREY)
    _write(axes, bars, -0.85, f"{forest.ends[1]} →", color=GREY, ha="right")
    at = bars + GAP
    for i in range(shown):
        right = forest.head[i] != "verdict"  # the only column of words
        x = at + widths[i] if right else at
        texts = [(-0.85, forest.head[i], GREY), *((j, row.cells[i], INK) for j, row in enumerate(forest.rows))]
        for y, text, color in texts:
            _write(axes, x, y, text, color=color, ha="right" if right else "left")
        at += widths[i] + GAP


def widest(canvas: Canvas, texts: Iterable[str], weight: str = "normal") -> float:
    """Return the width of the longest text in inches."""
    renderer: Any = canvas.canvas.get_renderer()  # type: ignore[attr-defined]
    font = FontProperties(size=SIZE, weight=weight)
    return max(float(renderer.get_text_width_height_descent(text, font, False)[0]) for text in set(texts)) / canvas.dpi


def _write(axes: Axes, x: float, row: float, text: str, **style: Any) -> None:
    """Write text `x` inches right of the axes' left edge, vertically centered in a row."""
    place = axes.get_yaxis_transform() + ScaledTranslation(x, 0, axes.figure.dpi_scale_trans)
    axes.text(0, row, text, va="center", fontsize=SIZE, transform=place, **style)


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
    axes.set_xticks(*zip(*(label_ticks(forest.limits) if known else [(0.0, "0")]), strict=True))


def _draw_rows(axes: Axes, forest: Forest) -> None:
    """Draw the intervals, means and single seeds of all rows; an interval that leaves the axis ends in an arrow."""
    low, high = forest.limits
    groups: dict[tuple[str, str, str], list[tuple[int, ForestRow]]] = defaultdict(list)
    for y, row in enumerate(forest.rows):
        if row.effect is not None:
            groups[STYLES.get(row.verdict, UNDECIDED)].append((y, row))
    for (color, shape, face), rows in groups.items():
        for name, thickness in (("inner", 3.4), ("outer", 1.0)):
            bars = [(y, *bounds) for y, row in rows if (bounds := getattr(row, name))]
            at, begin, end = np.reshape(bars, (-1, 3)).T
            ends = np.clip(begin, low, high), np.clip(end, low, high)
            axes.hlines(at, *ends, color, linewidth=thickness, zorder=2)
        for cut, mark, outside in ((low, "<", begin < low), (high, ">", end > high)):
            axes.plot(np.full(outside.sum(), cut), at[outside], mark, color=color, ms=4.5, clip_on=False, zorder=3)
        means = [(row.effect, y) for y, row in rows if row.effect is not None and low <= row.effect <= high]
        axes.plot(*np.reshape(means, (-1, 2)).T, shape, color=color, mfc=face, ms=5.2, zorder=4)
        seeds = [(value, y + 0.33) for y, row in rows for value in row.values if low <= value <= high]
        axes.plot(*np.reshape(seeds, (-1, 2)).T, "|", color=GREY, ms=4.5, mew=0.8, zorder=2)
