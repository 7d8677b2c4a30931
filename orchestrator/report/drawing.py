"""Draw figures with matplotlib: PNG and PDF for papers; SVG for the page, laid out for wide windows and for phones."""

from __future__ import annotations

import gc
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedFormatter, ScalarFormatter
from matplotlib.transforms import ScaledTranslation
from PIL import Image

from ablatrix.orchestrator.report import forest_plot, waterfall_plot
from ablatrix.orchestrator.report.formatting import shorten
from ablatrix.orchestrator.report.inline_svg import inline_svg
from ablatrix.orchestrator.report.palette import BAND, GREY, INK, style, ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.ticker import Formatter

    from ablatrix.orchestrator.report.figure_data import Figure, Line, Panel

LABEL_HEIGHT = 0.072  # fraction of a panel's height
DPI = 200  # of PNGs and of the layout: the width of text depends on it
WIDE, NARROW = 7.2, 3.5  # inches: two columns of a paper; a phone
ROUND: dict[str, Any] = {"capstyle": "projecting", "joinstyle": "round"}  # as in single lines

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "text.color": INK,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-5, 6),
    "axes.axisbelow": True,
    "grid.color": BAND,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "ablatrix",
    "text.usetex": False,
    "text.parse_math": False,  # a name may contain a dollar sign
}
_KEPT = {"backend", "backend_fallback", "interactive", "toolbar", "timezone"}
NO_METADATA: dict[str, dict[str, None]] = {
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None, "Format": None, "Type": None},
}


@contextmanager
def settings() -> Iterator[None]:
    """Use matplotlib's defaults and SETTINGS, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # drawn as a box; the page shows the character
        defaults: dict[Any, Any] = {k: v for k, v in matplotlib.rcParamsDefault.items() if k not in _KEPT}
        matplotlib.rcParams.update(defaults | SETTINGS)
        yield


@dataclass(frozen=True)
class Drawn:
    """A figure in every format; formats that were not requested are empty.

    svg: two inline elements; the page's style sheet shows one of them.
    """

    png: bytes
    pdf: bytes
    svg: str


def draw_all(figures: Iterable[Figure], *, with_pdf: bool = False) -> dict[str, Drawn]:
    """Draw the figures and return them by name.

    Garbage from matplotlib, 10 MB a figure, is collected after each figure, without scanning the runs.
    """
    made = {}
    gc.freeze()
    try:
        for figure in figures:
            made[figure.name] = draw(figure, with_pdf=with_pdf)
            gc.collect()
    finally:
        gc.unfreeze()
    return made


def draw(figure: Figure, *, on_page: bool = True, with_pdf: bool = False) -> Drawn:
    """Draw the figure; the bytes are the same every time.

    on_page: also as SVG, unless the page has it as a table; with_pdf: also as PDF, whose fonts take half a second.
    """
    with settings():
        canvas = layout(figure)
        png, pdf = save(canvas, "png"), save(canvas, "pdf") if with_pdf else b""
        svg = ""
        if on_page and not figure.forest:
            svg = inline_svg(save(canvas, "svg"), figure, "wide")
            svg += inline_svg(save(layout(figure, NARROW, canvas), "svg"), figure, "narrow")
        return Drawn(png, pdf, svg)


def save(canvas: Canvas, kind: str) -> bytes:
    """Return the canvas as the content of a file of this kind, without dates or versions in its metadata."""
    buffer = io.BytesIO()
    if kind == "png":
        drawn: Any = FigureCanvasAgg(canvas)
        drawn.draw()
        image = Image.frombuffer("RGBA", drawn.get_width_height(), drawn.buffer_rgba()).convert("RGB")
        image.save(buffer, kind, dpi=(DPI, DPI), compress_level=3)  # takes half as long as 6, the default
        FigureCanvasBase(canvas)  # frees the image
    else:
        canvas.savefig(buffer, format=kind, dpi=DPI, metadata=NO_METADATA[kind], transparent=kind == "svg")
    return buffer.getvalue()


def layout(figure: Figure, width: float = WIDE, drawn: Canvas | None = None) -> Canvas:
    """Return the figure laid out `width` inches wide, ready to be drawn: the same layout for every format.

    drawn: the same figure at another width; its panels are moved instead of being made again.
    """
    canvas = drawn if drawn and figure.panels else Canvas(dpi=DPI)
    FigureCanvasAgg(canvas)
    if figure.forest:
        forest_plot.fill(canvas, figure.title, figure.forest, width)
    elif figure.waterfall:
        waterfall_plot.fill(canvas, figure.title, figure.waterfall, width)
    else:
        _panels(canvas, figure, width)
        if canvas.axes:
            ConstrainedLayoutEngine(h_pad=0.06, hspace=0.03).execute(canvas)
    FigureCanvasBase(canvas)  # frees the 10 MB image in which text was measured
    return canvas


def _panels(canvas: Canvas, figure: Figure, width: float) -> None:
    """Draw the panels, or move those that are there, and set what depends on the width: titles, labels and legend."""
    count = max(1, len(figure.panels))
    direct = any(panel.direct for panel in figure.panels)
    columns = 1 if width == NARROW or direct else min(3 if count > 4 else 2, count)
    rows = math.ceil(count / columns)
    legend_columns = _legend_columns(figure, width)
    legend_height = 0.19 * math.ceil(len(figure.legend) / legend_columns)
    title = forest_plot.wrap(figure.title, width)
    height = 1.9 if columns == 3 or (width == NARROW and not direct) else 2.5
    title_height = forest_plot.TITLE_LINE * len(title)
    canvas.set_size_inches(width, rows * height + legend_height + title_height + 0.1)
    if figure.title:
        canvas.suptitle("\n".join(title), x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    if not figure.panels:
        canvas.text(0.5, 0.5, "No rows of any loss.csv yet", ha="center", color=GREY)
    names = shorten((text for p in figure.panels for text in p.title.split("\n")), 25 if columns == 3 else 38)
    there, grid = canvas.axes, canvas.add_gridspec(rows, columns)
    for i, panel in enumerate(figure.panels):
        axes = there[i] if there else canvas.add_subplot(grid[i])
        axes.set_subplotspec(grid[i])
        if not there:
            axes.patch.set_gid(f"panel{i}")
            fill_panel(axes, panel, steps=i == 0)
        # y=None: matplotlib measures everything above the axes to find the title's place, whenever it is asked
        y = None if _has_top(axes) else 1.0
        axes.set_title("\n".join(names[text] for text in panel.title.split("\n")), y=y)
        below = figure.panels[i + columns] if i + columns < count else None
        shared = below and (below.x_label, below.x_range) == (panel.x_label, panel.x_range)
        axes.set_xlabel("" if shared else panel.x_label)
        axes.set_ylabel("" if columns == 3 and i % columns else panel.y_label)
    for legend in list(canvas.legends):
        legend.remove()
    if figure.legend:
        _legend(canvas, figure, legend_columns, 36 if width == NARROW else 60)


def _has_top(axes: Axes) -> bool:
    """True if a second axis or a factor of the tick labels (1e−6) is above the axes."""
    return bool(axes.child_axes or axes.yaxis.get_major_formatter().get_offset())


def fill_panel(axes: Axes, panel: Panel, steps: bool) -> None:
    """Draw a panel into axes. steps: add a second axis in steps, if the panel has one."""
    if panel.zero:
        axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    for i, line in enumerate(panel.lines):
        _line(axes, line, i, len(panel.lines))
    axes.set_xlim(*panel.x_range)
    axes.set_ylim(*panel.y_range)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.log_ticks:
        labels = [f"{value:g}" if value < 10_000 else EngFormatter()(value) for value in panel.log_ticks]
        axes.set_xticks([math.log(value) for value in panel.log_ticks], labels)
    else:
        _set_ticks(axes.xaxis, ticks(panel.x_range, 4), EngFormatter() if panel.x_range[1] >= 10_000 else None)
    _set_ticks(axes.yaxis, ticks(panel.y_range, 5))
    axes.grid()
    for spine in axes.spines.values():
        spine.set_in_layout(False)  # the tick labels are farther out
    if panel.per_step and steps:
        _add_steps(axes, panel.per_step)
    if panel.direct:
        _label_ends(axes, panel)


def _set_ticks(axis: Axis, places: list[float], formatter: Formatter | None = None) -> None:
    """Set ticks with labels that are formatted now, not each time that the layout measures them."""
    axis.set_ticks(places)
    axis.set_major_formatter(formatter or ScalarFormatter())
    labels = FixedFormatter(axis.get_major_formatter().format_ticks(places))
    labels.set_offset_string(axis.get_major_formatter().get_offset())
    axis.set_major_formatter(labels)


def _add_steps(axes: Axes, per_step: float) -> None:
    """Add an axis in steps above the axis in tokens."""
    above = axes.secondary_xaxis("top", functions=(scale_by(1 / per_step), scale_by(per_step)))
    low, high = axes.get_xlim()
    above.set_xticks(ticks((low / per_step, high / per_step), 4))
    above.set_xlabel("steps")
    above.spines["top"].set_visible(True)


def scale_by(factor: float) -> Callable[[Any], Any]:
    """Return a function that multiplies numbers or arrays by `factor`."""
    return lambda x: x * factor


def _label_ends(axes: Axes, panel: Panel) -> None:
    """Write the name of each line at its end, moving names apart until none overlap."""
    low, high = panel.y_range
    ends = [(float(line.series.y[-1]), line) for line in panel.lines if len(line.series.y)]
    ends = sorted(((min(max(y, low), high), line) for y, line in ends), key=lambda end: end[0])
    names = shorten((line.label for line in panel.lines), 18)
    places = spread_out([(y - low) / (high - low) for y, _ in ends], LABEL_HEIGHT)
    for place, (_, line) in zip(places, ends, strict=True):
        color, _, marker = style(line.style)
        at = ScaledTranslation(8 / 72, 0, axes.figure.dpi_scale_trans)
        key = axes.plot([1], [place], color=color, marker=marker, transform=axes.transAxes + at, clip_on=False)
        key[0].set_in_layout(False)
        axes.annotate(
            names[line.label],
            (1, place),
            xycoords="axes fraction",
            xytext=(14, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            annotation_clip=False,
        )


def spread_out(places: list[float], gap: float) -> list[float]:
    """Move ascending places in [0, 1] at least `gap` apart, if that many fit, and keep them near where they were."""
    gap = min(gap, 1 / max(1, len(places) - 1))
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    limit = 1.0
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def _line(axes: Axes, line: Line, index: int, count: int) -> None:
    """Draw one of `count` curves, with its markers offset from the others' so that overlapping lines stay visible."""
    color, dash, marker = style(line.style)
    series = line.series
    if line.bars and series.low is not None and series.high is not None:
        lengths = (series.y - series.low, series.high - series.y)
        axes.errorbar(series.x, series.y, lengths, fmt=marker, color=color, elinewidth=1.0, capsize=2, zorder=4)
        return
    if series.low is not None and series.high is not None:
        axes.fill_between(series.x, series.low, series.high, color=color, alpha=0.18, linewidth=0, zorder=2)
    if line.seeds:
        runs = [np.column_stack([one.x, one.y]) for one in line.seeds]
        axes.add_collection(LineCollection(runs, colors=color, alpha=0.45, linewidths=0.5, zorder=2, **ROUND))
    every = max(1, len(series.x) // 8)
    axes.plot(
        series.x,
        series.y,
        color=color,
        linestyle=dash,
        marker=marker if line.dots or (count > 1 and not (line.light or line.plain)) else "",
        markevery=1 if line.dots and len(series.x) <= 12 else (int((index + 0.5) / count * every), every),
        alpha=0.55 if line.light else 1.0,
        linewidth=0.7 if line.light else 1.2,
        zorder=3,
    )


def _legend_columns(figure: Figure, width: float) -> int:
    widest = max((len(name) for name, _ in figure.legend), default=0)
    return max(1, min(len(figure.legend), int(width / (0.55 + 0.075 * min(widest, 60)))))


def _legend(canvas: Canvas, figure: Figure, columns: int, longest: int) -> None:
    # matplotlib fills columns; people read rows
    entries = [figure.legend[i] for c in range(columns) for i in range(c, len(figure.legend), columns)]
    handles = []
    scattered = all(len(line.series.x) == 1 for panel in figure.panels for line in panel.lines)
    for _, index in entries:
        color, dash, marker = style(index)
        handles.append(Line2D([], [], color=color, linestyle="" if scattered else dash, marker=marker))
    legend = canvas.legend(
        handles,
        ["x"] * len(entries),
        loc="outside lower left",
        ncols=columns,
        borderaxespad=0,
        columnspacing=1.2,
        handlelength=1.0 if scattered else 2.6,
    )
    names = shorten((name for name, _ in entries), longest)
    for text, (name, _) in zip(legend.get_texts(), entries, strict=True):
        text.set_text(names[name])  # set now because matplotlib drops labels that start with an underscore
