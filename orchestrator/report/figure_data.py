"""Figures as data: panels of curves and forest plots. figures.py makes them, drawing.py draws them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Series:
    """Points of a curve, x and y (P,); low and high (P,): 95% interval, None for one seed."""

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Line:
    """One curve. style: index of color, dash and marker; dots: a marker at every point; light: in the background.

    seeds: the curves of single runs, drawn thin behind it; bars: single points whose intervals are bars; plain: without
    markers.
    """

    label: str
    style: int
    series: Series
    dots: bool = False
    light: bool = False
    seeds: tuple[Series, ...] = ()
    bars: bool = False
    plain: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes. zero: draw a line at 0, the baseline.

    log_ticks: if given, x are natural logarithms, and the axis shows these values of what they are of.
    direct: every line has its label at its end; per_step: tokens of a step, for a second axis in steps.
    """

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    zero: bool = False
    direct: bool = False
    per_step: float | None = None
    log_ticks: tuple[float, ...] = ()


Bounds = tuple[float, float]


@dataclass(frozen=True)
class ForestRow:
    """One effect, or the baseline, which has none.

    inner, outer: its pointwise and its simultaneous 95% interval; values: differences of single seeds; cells: the texts
    of the table's columns; verdict decides color and marker.
    """

    label: str
    verdict: str
    cells: tuple[str, ...] = ()
    effect: float | None = None
    inner: Bounds | None = None
    outer: Bounds | None = None
    values: tuple[float, ...] = ()
    base: bool = False


@dataclass(frozen=True)
class Forest:
    """Effects with their intervals, a row each: a forest plot and a table at once.

    head: names of the columns, the most important first: where room is scarce, the last ones are left out. band:
    half-width of the shaded range around 0, None for none; ends: names of the sides; limits: those of the axis.
    """

    rows: tuple[ForestRow, ...]
    head: tuple[str, ...]
    x_label: str
    limits: Bounds
    band: float | None = None
    ends: tuple[str, str] = ("better", "worse")
    first: str = "cell"  # name of the column of labels

    def place(self, value: float) -> float:
        """Return where a value is on the axis, from 0 at the left end to 1; values outside are at its ends."""
        low, high = self.limits
        return min(max((value - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True)
class Step:
    """A bar of a waterfall from `start` to `end`. text: its size; helps: None for neither; interval: that of its end.

    total: it is the whole, and begins at the baseline.
    """

    label: str
    start: float
    end: float
    text: str
    helps: bool | None
    interval: Bounds | None = None
    total: bool = False


@dataclass(frozen=True)
class Waterfall:
    """Bars that add up, a row each. ends: names of the sides; limits: those of the axis."""

    steps: tuple[Step, ...]
    x_label: str
    limits: Bounds
    ends: tuple[str, str]


@dataclass(frozen=True)
class Figure:
    """A figure of the report: panels with an optional legend of (label, style), a forest plot, or a waterfall."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...] = ()
    forest: Forest | None = None
    legend: tuple[tuple[str, int], ...] = ()
    waterfall: Waterfall | None = None
