"""Colors, markers and ticks of all figures, and names short enough for them."""

from __future__ import annotations

from typing import Any

from matplotlib.ticker import MaxNLocator

INK, GREY, BAND = "#1a1a1a", "#6e6e6e", "#e4e4e4"
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
    """Return (color, dash, marker) of a style; the three together do not repeat within 264 cells."""
    if index == 0:
        return INK, "-", "o"
    i = index - 1
    return COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)], MARKERS[(i + 1) % len(MARKERS)]


def ticks(limits: tuple[float, float], count: int) -> list[float]:
    """Return about `count` round numbers within limits."""
    low, high = limits
    return [tick for tick in MaxNLocator(count, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]
