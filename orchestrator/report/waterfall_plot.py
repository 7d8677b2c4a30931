"""Draw a waterfall: each bar begins where the bar above ends, from the baseline to the whole."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report.forest_plot import GAP, MARGIN, TITLE_LINE, widest, wrap
from ablatrix.orchestrator.report.formatting import shorten
from ablatrix.orchestrator.report.palette import COLORS, GREY, INK, PAPER, label_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

    from ablatrix.orchestrator.report.figure_data import Step, Waterfall

ROW, HEAD, AXIS = 0.3, 0.22, 0.5  # inches
LONGEST = 28  # longest name in characters; half of that on a phone
HEIGHT = 0.58  # of a bar, relative to a row
NARROWEST = 0.2  # fraction of the width left for bars, even if names are long and too alike to be shortened


def fill(canvas: Canvas, title: str, waterfall: Waterfall, width: float) -> None:
    """Draw a title and the waterfall as a whole figure, `width` inches wide."""
    lines, narrow = wrap(title, width), width < 5
    rows = len(waterfall.steps)
    height = len(lines) * TITLE_LINE + MARGIN + HEAD + ROW * rows + AXIS
    canvas.set_size_inches(width, height)
    canvas.text(MARGIN / width, 1 - 0.04 / height, "\n".join(lines), va="top", weight="bold", linespacing=1.35)
    names = shorten((step.label for step in waterfall.steps), LONGEST // (1 + narrow))
    right = (widest(canvas, (step.text for step in waterfall.steps), weight="bold") + 2 * GAP) / width
    left = min((MARGIN + widest(canvas, names.values()) + GAP) / width, 1 - right - NARROWEST)
    axes = canvas.add_axes((left, AXIS / height, 1 - left - right, ROW * rows / height))
    axes.set_xlim(*waterfall.limits)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks(range(rows), [names[step.label] for step in waterfall.steps])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xticks(*zip(*label_ticks(waterfall.limits), strict=True))
    axes.set_xlabel(waterfall.x_label)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    for i, step in enumerate(waterfall.steps):
        _draw(axes, i, step)
    for i, (upper, _) in enumerate(pairwise(waterfall.steps)):
        axes.plot([upper.end] * 2, [i + HEIGHT / 2, i + 1 - HEIGHT / 2], color=GREY, linewidth=0.6, zorder=1)
    for text, x, side in ((f"← {waterfall.ends[0]}", 0, "left"), (f"{waterfall.ends[1]} →", 1, "right")):
        axes.text(x, 1 + 0.03 / rows, text, transform=axes.transAxes, color=GREY, ha=side, va="bottom")


def _draw(axes: Axes, row: int, step: Step) -> None:
    """Draw a bar, the interval of its end, and its value on the right."""
    color = GREY if step.helps is None else COLORS[0] if step.helps else COLORS[1]
    face = color if step.total else PAPER
    low, size = min(step.start, step.end), abs(step.end - step.start)
    axes.barh(row, size, HEIGHT, low, color=face, edgecolor=color, linewidth=1.0, zorder=2)
    if not step.total:
        axes.barh(row, size, HEIGHT, low, color=color, alpha=0.35, linewidth=0, zorder=2)
    if step.interval:
        axes.plot(step.interval, [row, row], color=INK, linewidth=1.0, solid_capstyle="butt", zorder=3)
    weight = "bold" if step.total else "normal"
    axes.text(1.02, row, step.text, transform=axes.get_yaxis_transform(), va="center", weight=weight)
