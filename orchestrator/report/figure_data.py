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
    """One curve. style: index of colour, dash and marker; dots: a marker at every point; light: in the background."""

    label: str
    style: int
    series: Series
    dots: bool = False
    light: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes. zero: draw a line at 0, the baseline."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    zero: bool = False


@dataclass(frozen=True)
class ForestRow:
    """One effect. verdict decides the marker (filled: significant, hollow: not); text is printed on the right."""

    label: str
    verdict: str
    text: str
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Forest:
    """Effects with their intervals, a row each. band: half-width of the shaded seed noise; ends: names of the sides."""

    rows: tuple[ForestRow, ...]
    x_label: str
    limits: tuple[float, float]
    band: float | None = None
    ends: tuple[str, str] = ("better", "worse")


@dataclass(frozen=True)
class Figure:
    """A figure of the report: panels with an optional legend of (label, style), or a forest plot."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...] = ()
    forest: Forest | None = None
    legend: tuple[tuple[str, int], ...] = ()
