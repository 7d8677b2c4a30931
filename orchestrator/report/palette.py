"""Colors, markers and ticks of all figures."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.ticker import MaxNLocator

from ablatrix.orchestrator.report.formatting import plain

INK, GREY, BAND = "#1a1a1a", "#6e6e6e", "#e4e4e4"
FEWEST_TICKS = 3
# Okabe & Ito 2008 without yellow, which is invisible on white; style 0, the baseline, is drawn in INK
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 2, 1.5, 2)))
PAPER = "#ffffff"
# What each color becomes on a dark page
DARK = dict(
    zip(
        (INK, GREY, BAND, PAPER, *COLORS),
        ("#e8e6e3", "#a8a6a2", "#33373d", "#16181b", "#4aa8e0", "#f08a45", "#2bc79a", "#e59cc4", "#8fd0f5", "#f0bd4a"),
        strict=True,
    )
)


def style(index: int) -> tuple[str, Any, str]:
    """Return (color, dash, marker) of a style; no combination repeats within 264 cells."""
    if index == 0:
        return INK, "-", "o"
    i = index - 1
    return COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)], MARKERS[(i + 1) % len(MARKERS)]


def ticks(limits: tuple[float, float], count: int) -> list[float]:
    """Return about `count` round numbers within the limits, at least FEWEST_TICKS."""
    low, high = limits
    found: list[float] = []
    for most in range(count, 2 * count + FEWEST_TICKS):
        values = MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high)
        found = [tick for tick in values if low <= tick <= high]
        if len(found) >= FEWEST_TICKS:
            break
    return found


def label_ticks(limits: tuple[float, float]) -> list[tuple[float, str]]:
    """Return about 5 ticks with labels that have the same number of decimals, except for 0."""
    found = ticks(limits, 5)
    step = found[1] - found[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(tick, plain(tick, digits) if abs(tick) > step / 2 else "0") for tick in found]


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return round numbers between two positive ones for a logarithmic axis, at least FEWEST_TICKS."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = tuple(step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high)
        if len(found) >= FEWEST_TICKS:
            return found
    return tuple(ticks((low, high), 4))  # the range is so narrow that the axis is nearly linear
