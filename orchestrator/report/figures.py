"""Figures as PNG and PDF, drawn by matplotlib without any global state of pyplot."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from ablatrix.orchestrator.report.plots import Figure, Forest, ForestRow, Panel, ticks
from ablatrix.orchestrator.report.wording import tick_labels
from ablatrix.trainer.rundir.console import visible

INK, GREY, BAND = "#1a1a1a", "#767676", "#e4e4e4"
# Okabe & Ito 2008, without the yellow that vanishes on white; style 0 is the baseline
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)))
WIDTH = 7.2  # inches: two columns of a paper

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 8.0,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "pdf.fonttype": 42,
    "text.usetex": False,
    "text.parse_math": False,  # a name may hold a dollar sign
}


@contextmanager
def settings() -> Iterator[None]:
    """Defaults and ours, whatever the user's matplotlibrc says: the same input draws the same picture."""
    with matplotlib.rc_context():
        settings: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if k not in _KEPT}
        matplotlib.rcParams.update(settings | SETTINGS)
        yield


_KEPT = {"backend", "backend_fallback", "interactive", "toolbar", "timezone"}


def draw(figure: Figure, formats: tuple[str, ...] = ("png", "pdf")) -> dict[str, bytes]:
    """The figure in each format, without dates or versions in its metadata."""
    with settings(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as a box; the page shows the name
        canvas = layout(figure)
        return {name: save(canvas, name) for name in formats}


def layout(figure: Figure) -> Canvas:
    """The figure, laid out and ready to be drawn."""
    return _forest(figure) if figure.forest else _panels(figure)


def save(canvas: Canvas, name: str) -> bytes:
    """The drawn figure as the content of a file of this format."""
    nothing = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}
    buffer = io.BytesIO()
    canvas.savefig(buffer, format=name, dpi=160, metadata=nothing[name])
    return buffer.getvalue()


def style(index: int) -> tuple[str, Any, str]:
    """(colour, dash, marker) of a style; the three together do not repeat within 264 cells."""
    if index == 0:
        return INK, "-", "o"
    i = index - 1
    return COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)], MARKERS[(i + 1) % len(MARKERS)]


# ---- panels ----------------------------------------------------------------------------------------------------------


def _panels(figure: Figure) -> Canvas:
    columns = min(3 if len(figure.panels) > 4 else 2, max(1, len(figure.panels)))
    rows = max(1, math.ceil(len(figure.panels) / columns))
    legend_lines = legend_rows(figure.legend)
    extra = 0.12 + 0.19 * legend_lines
    height = rows * (2.0 if columns == 3 else 2.6) + extra
    canvas = Canvas(figsize=(WIDTH, height))
    FigureCanvasAgg(canvas)
    canvas.subplots_adjust(
        left=0.76 / WIDTH,
        right=1 - 0.15 / WIDTH,
        top=1 - 0.3 / height,
        bottom=(extra + 0.42) / height,
        wspace=0.26 if columns == 3 else 0.3,
        hspace=0.5,
    )
    if not figure.panels:
        canvas.text(0.5, 0.6, "No rows of any loss.csv yet", ha="center", color=GREY)
    for i, panel in enumerate(figure.panels):
        axes = canvas.add_subplot(rows, columns, i + 1)
        _panel(axes, panel)
        axes.set_title(short(panel.title, 25 if columns == 3 else 38), loc="left")
        if columns == 3 and i % columns:
            axes.set_ylabel("")
        if i + columns < len(figure.panels) and panel.x_label == figure.panels[i + columns].x_label:
            axes.set_xlabel("")
    legend(canvas, figure, height)
    return canvas


def legend_rows(legend: tuple[tuple[str, int], ...]) -> int:
    """Lines of text that it takes."""
    return math.ceil(len(legend) / _legend_columns(legend)) if legend else 0


def _legend_columns(legend: tuple[tuple[str, int], ...]) -> int:
    widest = max(len(name) for name, _ in legend)
    return max(1, min(len(legend), int(WIDTH / (0.55 + 0.075 * min(widest, 60)))))


def _panel(axes: Axes, panel: Panel) -> None:
    if panel.zero:
        axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    for line in panel.lines:
        colour, dash, marker = style(line.style)
        series = line.series
        if series.low is not None and series.high is not None:
            axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.18, linewidth=0, zorder=2)
        every = max(1, len(series.x) // 8)
        axes.plot(
            series.x,
            series.y,
            color=colour,
            linestyle=dash,
            marker=None if line.light else marker,
            markevery=1 if line.dots and len(series.x) <= 12 else (every // 2, every),
            alpha=0.55 if line.light else 1.0,
            linewidth=0.7 if line.light else 1.2,
            zorder=3,
        )
    axes.set_xlim(*panel.x_range)
    axes.set_ylim(*panel.y_range)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    across, down = ticks(*panel.x_range, 4), ticks(*panel.y_range, 5)
    axes.set_xticks(across, tick_labels(across))
    axes.set_yticks(down, tick_labels(down))
    axes.grid(color=BAND, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)


def legend(canvas: Canvas, figure: Figure, height: float) -> None:
    """Below the panels. Names are set afterwards: matplotlib drops labels that start with an underscore."""
    if not figure.legend:
        return
    columns = _legend_columns(figure.legend)
    # matplotlib fills columns; people read rows
    entries = [figure.legend[i] for c in range(columns) for i in range(c, len(figure.legend), columns)]
    handles = []
    for _, index in entries:
        colour, dash, marker = style(index)
        handles.append(Line2D([], [], color=colour, linestyle=dash, marker=marker))
    legend = canvas.legend(
        handles,
        ["x"] * len(entries),
        loc="lower left",
        bbox_to_anchor=(0.06, 0.04 / height),
        ncols=columns,
        borderaxespad=0,
        columnspacing=1.2,
        handlelength=2.6,
    )
    for text, (name, _) in zip(legend.get_texts(), entries, strict=True):
        text.set_text(short(name, 60))


def short(name: str, most: int) -> str:
    """A long name without its middle: names built from parts differ at both ends."""
    name = visible(name)
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}\N{HORIZONTAL ELLIPSIS}{name[-(most - 1 - head) :]}"


# ---- forest ----------------------------------------------------------------------------------------------------------


def _forest(figure: Figure) -> Canvas:
    forest = figure.forest
    assert forest is not None
    height = 0.95 + 0.27 * max(2, len(forest.rows))
    canvas = Canvas(figsize=(WIDTH, height))
    FigureCanvasAgg(canvas)
    names = max([len(short(r.label, 34)) for r in forest.rows] + [6])
    texts = max([len(r.text) for r in forest.rows] + [6])
    left, right = 0.25 + 0.068 * names, 0.2 + 0.064 * texts
    axes = canvas.add_axes((left / WIDTH, 0.58 / height, 1 - (left + right) / WIDTH, 1 - 0.93 / height))
    if forest.band:
        axes.axvspan(-forest.band, forest.band, color=BAND, linewidth=0, zorder=0)
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    places = np.arange(len(forest.rows))
    for place, row in zip(places, forest.rows, strict=True):
        _forest_row(axes, float(place), row, forest.limits)
    axes.set_yticks(places, [short(r.label, 34) for r in forest.rows])
    axes.set_ylim(len(forest.rows) - 0.4, -0.6)
    axes.set_xlim(*forest.limits)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(forest.x_label)
    known = any(row.effect is not None for row in forest.rows)
    across = ticks(*forest.limits, min(6, int((WIDTH - left - right) / 0.6))) if known else [0.0]
    axes.set_xticks(across, tick_labels(across))
    _ends(axes, forest)
    return canvas


def _ends(axes: Axes, forest: Forest) -> None:
    """Which side is which, over the two ends of the axis."""
    for word, place, align in ((f"← {forest.ends[0]}", 0, "left"), (f"{forest.ends[1]} →", 1, "right")):
        axes.annotate(
            word,
            (place, 1),
            xycoords="axes fraction",
            xytext=(0, 4),
            textcoords="offset points",
            ha=align,
            va="bottom",
            color=GREY,
            annotation_clip=False,
        )


def _forest_row(axes: Axes, place: float, row: ForestRow, limits: tuple[float, float]) -> None:
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (6, 0), "textcoords": "offset points"}
    axes.annotate(row.text, (1, place), va="center", annotation_clip=False, **beside)
    if row.effect is None:
        return
    if row.low is not None and row.high is not None:
        low, high = max(row.low, limits[0]), min(row.high, limits[1])
        axes.plot([low, high], [place, place], color=INK, linewidth=1.3, solid_capstyle="butt", zorder=2)
        for end, cut, mark in ((low, row.low < limits[0], "<"), (high, row.high > limits[1], ">")):
            axes.plot([end], [place], marker=mark if cut else "|", color=INK, markersize=5, clip_on=False, zorder=2)
        axes.plot(row.values, [place + 0.24] * len(row.values), "|", color=GREY, markersize=3, zorder=2)
    face = COLOURS[0] if row.word in ("helps", "synergy") else COLOURS[1]
    shown = row.word in ("helps", "hurts", "synergy", "conflict")
    shape = {"helps": "o", "synergy": "o", "hurts": "s", "conflict": "s"}.get(row.word, "D")
    axes.plot(
        [row.effect], [place], shape, color=INK, markerfacecolor=face if shown else "white", markersize=5.5, zorder=4
    )
