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

    seeds: curves of single runs, drawn thin behind it; bars: isolated points with error bars; plain: no markers.
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

    log_ticks: if given, x is in natural logarithms and the axis is labeled with these values before the logarithm.
    direct: label every line at its end; per_step: tokens per step, for a second axis in steps.
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

    inner, outer: its pointwise and simultaneous 95% intervals; values: differences of single seeds; cells: contents of
    the table's columns; verdict: determines color and marker.
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
    """Effects with their intervals, one per row: both a forest plot and a table.

    head: names of the columns, most important first: if space is short, the last ones are left out. band: half-width of
    the shaded range around 0, None for none; ends: names of the sides; limits: of the axis.
    """

    rows: tuple[ForestRow, ...]
    head: tuple[str, ...]
    x_label: str
    limits: Bounds
    band: float | None = None
    ends: tuple[str, str] = ("better", "worse")
    first: str = "cell"  # name of the column of labels

    def cut(self, row: ForestRow) -> tuple[bool, bool]:
        """Return whether an interval of the row goes on beyond the left and beyond the right end of the axis."""
        ends = [end for bounds in (row.inner, row.outer) if bounds for end in bounds]
        return any(end < self.limits[0] for end in ends), any(end > self.limits[1] for end in ends)

    def place(self, value: float) -> float:
        """Return the position of a value on the axis, from 0 (left) to 1 (right); values outside are clipped."""
        low, high = self.limits
        return min(max((value - low) / (high - low), 0.0), 1.0)


@dataclass(frozen=True)
class Step:
    """A bar of a waterfall from `start` to `end`. text: its size; helps: None if it neither helps nor hurts.

    interval: of its end; total: True for the bar of the whole, which begins at the baseline.
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
    """Bars that add up, one per row. ends: names of the sides; limits: of the axis."""

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
