"""The planned learning rates as one figure: a few in one pair of axes, more as small multiples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from ablatrix.orchestrator.report.figures import (
    BAND,
    COLOURS,
    GREY,
    INK,
    WIDTH,
    legend,
    legend_rows,
    save,
    settings,
    short,
    style,
)
from ablatrix.orchestrator.report.plots import Figure, ticks
from ablatrix.orchestrator.report.wording import tick_labels

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.lr_curves import Curve

TOGETHER = 4  # lines in one pair of axes; more hide each other
FAR_APART = 10  # where the peaks' ratio is above this, each line is drawn relative to its own peak
MARKS = 5  # on a line
OTHERS = "#c8c8c8"


def draw(curves: Sequence[Curve], formats: tuple[str, ...] = ("png", "pdf")) -> dict[str, bytes]:
    """The schedules over the steps, in each format."""
    with settings():
        canvas = together(curves) if len(curves) <= TOGETHER else apart(curves)
        return {name: save(canvas, name) for name in formats}


def label(names: Sequence[str], most: int) -> str:
    """`baseline, rope + 3 more`: as many names as there is room for."""
    for count in range(len(names), 1, -1):
        left = len(names) - count
        text = ", ".join(names[:count]) + (f" + {left} more" if left else "")
        if len(text) <= most:
            return text
    rest = f" + {len(names) - 1} more" if len(names) > 1 else ""
    return short(names[0], most - len(rest)) + rest


def together(curves: Sequence[Curve]) -> Canvas:
    """All in one pair of axes. Where lines lie on each other, the thinner later ones leave the earlier ones' edges."""
    entries = tuple((f"{label(c.cells, 40)}: {_told(c)}", i) for i, c in enumerate(curves))
    extra = 0.19 * legend_rows(entries)
    height = 3.0 + extra
    canvas = _canvas(height)
    axes = canvas.add_axes((0.76 / WIDTH, (extra + 0.5) / height, 1 - 0.96 / WIDTH, 1 - (extra + 0.65) / height))
    for i, curve in enumerate(curves):
        colour, dash, marker = style(i)
        x, y = np.array(curve.steps, dtype=float), np.array(curve.rates) / unit(curve, curves)
        axes.plot(x, y, color=colour, linestyle=dash, linewidth=1.2 + 0.6 * (len(curves) - 1 - i), zorder=3 + i)
        # each line has its marks at places of its own
        at = x[-1] * (np.arange(MARKS) + (i + 0.5) / len(curves)) / MARKS
        axes.plot(at, np.interp(at, x, y), marker, color=colour, markersize=4.5, zorder=9)
    _axes(axes, curves, 6)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(_y_label(curves))
    legend(canvas, Figure("", "", "", legend=entries), height)
    return canvas


def apart(curves: Sequence[Curve]) -> Canvas:
    """One panel a schedule, named above it, with the others in grey behind."""
    columns = 3 if len(curves) <= 9 else 4
    rows = math.ceil(len(curves) / columns)
    height = 0.45 + 1.55 * rows
    canvas = _canvas(height)
    canvas.subplots_adjust(
        left=0.72 / WIDTH,
        right=1 - 0.15 / WIDTH,
        top=1 - 0.4 / height,
        bottom=0.5 / height,
        wspace=0.12,
        hspace=0.62,
    )
    for i, curve in enumerate(curves):
        axes = canvas.add_subplot(rows, columns, i + 1)
        for other in curves:
            axes.plot(other.steps, np.array(other.rates) / unit(other, curves), color=OTHERS, linewidth=0.6, zorder=2)
        axes.plot(curve.steps, np.array(curve.rates) / unit(curve, curves), color=COLOURS[0], linewidth=1.6, zorder=3)
        _axes(axes, curves, 4 if columns == 3 else 3)
        axes.annotate(
            _told(curve), (0, 1), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points", color=GREY
        )
        axes.set_title(label(curve.cells, 32 if columns == 3 else 24), loc="left", pad=14, fontsize=8, color=INK)
        if i % columns:
            axes.tick_params(labelleft=False)
        if i + columns < len(curves):
            axes.tick_params(labelbottom=False)
    canvas.text(0.5 + 0.29 / WIDTH, 0.08 / height, "optimiser step", ha="center", va="bottom")
    canvas.text(0.06 / WIDTH, 0.5, _y_label(curves), rotation=90, ha="left", va="center")
    return canvas


def unit(curve: Curve, curves: Sequence[Curve]) -> float:
    """What a curve's rates are divided by: 1, or its peak where peaks are too far apart for one axis."""
    peaks = [max(other.rates) for other in curves]
    return max(curve.rates) if max(peaks) > FAR_APART * min(peaks) else 1.0


def _y_label(curves: Sequence[Curve]) -> str:
    return "learning rate" if all(unit(curve, curves) == 1.0 for curve in curves) else "learning rate / peak"


def _told(curve: Curve) -> str:
    return f"{curve.name}, peak {max(curve.rates):.3g}"


def _canvas(height: float) -> Canvas:
    canvas = Canvas(figsize=(WIDTH, height))
    FigureCanvasAgg(canvas)
    return canvas


def _axes(axes: Axes, curves: Sequence[Curve], about: int) -> None:
    """Ranges and ticks, the same for all panels."""
    end = max(curve.steps[-1] for curve in curves)
    axes.set_xlim(0, end)
    across = ticks(0, end, about)
    axes.set_xticks(across, tick_labels(across))
    top = 1.06 * max(max(curve.rates) / unit(curve, curves) for curve in curves)
    down = ticks(0, top, min(about, 5))
    axes.set_ylim(0, top)
    axes.set_yticks(down, tick_labels(down))
    axes.grid(color=BAND, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
