"""Draw figures with matplotlib: PNG and PDF for papers; SVG for the page, laid out for wide windows and for phones."""

from __future__ import annotations

import gc
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import ScaledTranslation

from ablatrix.orchestrator.report import forest_plot, waterfall_plot
from ablatrix.orchestrator.report.formatting import shorten
from ablatrix.orchestrator.report.palette import BAND, GREY, INK, style, ticks
from ablatrix.trainer.rundir.console import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ablatrix.orchestrator.report.figure_data import Figure, Line, Panel

LABEL_HEIGHT = 0.072  # fraction of a panel's height
DPI = 200  # of PNGs and of the layout: the width of text depends on it
WIDE, NARROW = 7.2, 3.5  # inches: two columns of a paper; a phone

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
    "png": {"Software": None},
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
        svg = ""
        if on_page and not figure.forest:
            svg = inline_svg(save(canvas, "svg"), figure, "wide")
            svg += inline_svg(save(layout(figure, NARROW), "svg"), figure, "narrow")
        return Drawn(save(canvas, "png"), save(canvas, "pdf") if with_pdf else b"", svg)


def save(canvas: Canvas, kind: str) -> bytes:
    """Return the canvas as the content of a file of this kind, without dates or versions in its metadata."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format=kind, dpi=DPI, metadata=NO_METADATA[kind], transparent=kind == "svg")
    return buffer.getvalue()


def layout(figure: Figure, width: float = WIDE) -> Canvas:
    """Return the figure laid out `width` inches wide, ready to be drawn: the same layout for every format."""
    canvas = Canvas(dpi=DPI)
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


# ---- panels ----------------------------------------------------------------------------------------------------------


def _panels(canvas: Canvas, figure: Figure, width: float) -> None:
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
    for i, panel in enumerate(figure.panels):
        axes = canvas.add_subplot(rows, columns, i + 1)
        axes.patch.set_gid(f"panel{i}")
        fill_panel(axes, panel, steps=i < columns)
        axes.set_title("\n".join(names[text] for text in panel.title.split("\n")))
        if columns == 3 and i % columns:
            axes.set_ylabel("")
        below = figure.panels[i + columns] if i + columns < count else None
        if below and (below.x_label, below.x_range) == (panel.x_label, panel.x_range):
            axes.set_xlabel("")
    if figure.legend:
        _legend(canvas, figure, legend_columns, 36 if width == NARROW else 60)


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
        axes.set_xticks(ticks(panel.x_range, 4))
    axes.set_yticks(ticks(panel.y_range, 5))
    if panel.x_range[1] >= 10_000 and not panel.log_ticks:
        axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid()
    if panel.per_step and steps:
        _add_steps(axes, panel.per_step)
    if panel.direct:
        _label_ends(axes, panel)


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
    for one in line.seeds:
        axes.plot(one.x, one.y, color=color, alpha=0.45, linewidth=0.5, zorder=2)
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


# ---- SVG for the page ------------------------------------------------------------------------------------------------


def inline_svg(svg: bytes, figure: Figure, variant: str) -> str:
    """Return matplotlib's SVG as an element for the page.

    Style attributes, which the page's security policy forbids, become presentation attributes, so that the style sheet
    can replace colors on a dark page; ids are unique across figures; the areas of panels are marked for hover.js.
    """
    root = ElementTree.fromstring(svg)
    referenced = re.findall(r'(?:href="|url\()#([^")]+)', svg.decode())
    names = {old: f"{figure.name}-{variant}-{i}" for i, old in enumerate(dict.fromkeys(referenced))}
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        element.tail = None
        if element.tag != "text":
            element.text = None
        element.attrib = _attributes(element, names)
    shown = {"class": variant, "viewBox": root.get("viewBox", ""), "role": "img", "aria-label": visible(figure.title)}
    root.attrib = {**shown, "stroke-linejoin": "round", "data-figure": figure.name}
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(element: ElementTree.Element, names: dict[str, str]) -> dict[str, str]:
    """Return an element's attributes for the page. names: old id -> new id, for references."""
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    gid = attributes.pop("id", "")
    if gid in names:
        attributes["id"] = names[gid]
    elif gid.startswith("panel"):
        attributes["data-panel"] = gid.removeprefix("panel")
    for declaration in attributes.pop("style", "").split(";"):
        key, _, value = declaration.partition(":")
        if key.strip() and key.strip() != "font-family":
            attributes[key.strip()] = value.strip()
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    return {key: _tidy(key, value, names) for key, value in attributes.items()}


def _tidy(key: str, value: str, names: dict[str, str]) -> str:
    """Return an attribute with references to the new ids and coordinates rounded to a hundredth of a point."""
    if key == "href":
        return f"#{names[value.removeprefix('#')]}"
    if value.startswith("url(#"):
        return f"url(#{names[value[5:-1]]})"
    if key in ("d", "x", "y", "transform"):
        return re.sub(r"(\.\d\d)\d+|\s+(?=\s)", r"\1", value).strip()
    return value
