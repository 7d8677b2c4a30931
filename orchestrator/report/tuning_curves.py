"""The figure of tuned arms: results of the tuning runs against the tuned setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ablatrix.orchestrator.report import formatting
from ablatrix.orchestrator.report.figure_data import Bounds, Figure, Line, Panel, Series
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.optimum import Optimum
    from ablatrix.orchestrator.report.tuned import Tuned

POINTS = 40  # per parabola
MOST_EXCESS = 6.0  # times the worst arm's optimum over the best: results above that are cut off


def draw(analysis: Analysis, tuned: Tuned, styles: Mapping[str, int], remark: str) -> Figure | None:
    """Return the figure, None without results. styles: of the arms to draw; remark: added to the caption."""
    drawn = {name: arm.optimum for name in styles if (arm := tuned.arms.get(name))}
    lines = [_line(name, styles[name], optimum) for name, optimum in drawn.items() if optimum]
    if not lines:
        return None
    measure, tune = analysis.measure, tuned.tune
    ends = math.log(tune.grid[0]), math.log(tune.grid[-1])
    room = 0.04 * (ends[1] - ends[0])
    panel = Panel(
        measure.title,
        tune.setting,
        measure.unit or measure.name,
        tuple(lines),
        (ends[0] - room, ends[1] + room),
        _range(lines, measure.higher_is_better),
        direct=True,
        log_ticks=tune.grid,
    )
    caption = (
        f"Final {measure.name} of the tuning runs against {tune.setting}: means over "
        f"{count(len(tune.seeds), 'seed')}; thin: the parabola through the best and its "
        "neighbors, whose minimum is confirmed with other seeds."
    )
    return Figure("tuning", _title(tuned), caption + remark, (panel,))


def _line(name: str, style: int, found: Optimum) -> Line:
    """Return the means of an arm, with its parabola thin behind them."""
    x, y = np.log(list(found.means)), np.array(list(found.means.values()))
    smooth = np.linspace(math.log(found.near[0]), math.log(found.near[-1]), POINTS)
    parabola = (Series(smooth, np.polyval(found.parabola, smooth)),) if found.parabola else ()
    return Line(name, style, Series(x, y), dots=True, seeds=parabola)


def _range(lines: Sequence[Line], rising: bool) -> Bounds:
    """Return the range of the means, excluding those far worse than any arm's best."""
    means = [-line.series.y if rising else line.series.y for line in lines]
    best = [float(y.min()) for y in means]
    low, high = min(best), max(float(y.max()) for y in means)
    typical = sorted(float(np.median(y)) for y in means)[len(means) // 2]
    high = min(high, max(best) + MOST_EXCESS * max(typical - low, 1e-3))
    room = 0.06 * (high - low) or 1e-3
    return (-high - room, -low + room) if rising else (low - room, high + room)


def _title(tuned: Tuned) -> str:
    """Return `Best trainer.learning_rate: baseline 0.002, cosine 0.004`."""
    names = formatting.shorten(tuned.arms, 25)
    known = [f"{names[name]} {arm.optimum.value:g}" for name, arm in tuned.arms.items() if arm.optimum]
    return f"Best {tuned.tune.setting}: {', '.join(known[:6])}" + (f" and {len(known) - 6} more" if known[6:] else "")
