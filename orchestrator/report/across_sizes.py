"""How the effect of each cell changes with training compute, in a study with a scale axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.report import scaling
from ablatrix.orchestrator.report.scaling import Gain, Line, Point, Prediction
from ablatrix.orchestrator.study.scale import FARTHEST

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis, Ladder
    from ablatrix.orchestrator.report.cell_result import CellResult

TENFOLD = math.log(10)
CHANGES_SIGN = "changes sign"


@dataclass(frozen=True)
class Trend:
    """The effect of a cell across sizes. line: None if its effect is known at fewer than two sizes.

    ahead: effect predicted at a larger size; gains: size -> compute-equivalent gain.
    """

    cell: str
    line: Line | None
    ahead: Prediction | None = None
    gains: Mapping[str, Gain] = field(default_factory=dict)

    @property
    def shown(self) -> bool:
        """True if the effect is shown to change with compute: at least three sizes and a slope with p <= 0.05."""
        known = self.line is not None and len(self.line.points) >= scaling.FEWEST_SIZES
        return known and self.line is not None and self.line.slope_interval[2] <= 1 - 0.95

    @property
    def direction(self) -> str:
        """Whether the effect `grows` or `shrinks` from the smallest to the largest compute, or `changes sign`.

        The sign changes if the intervals at both ends exclude 0, on opposite sides.
        """
        if self.line is None:
            return ""
        first, last = self.line.at(min(point.compute for point in self.line.points)), self.line.at(self.line.largest)
        if first.high < 0 < last.low or last.high < 0 < first.low:
            return CHANGES_SIGN
        return "grows" if abs(last.effect) > abs(first.effect) else "shrinks"


def training_flops(cell: CellResult | None) -> float | None:
    """Return the training FLOPs of one run of a cell: the trainer's own count, else 6 N D (Kaplan et al. 2020)."""
    tokens = cell.average("tokens") if cell else None
    if cell is None or not tokens:
        return None
    each = cell.flops_per_token or (6 * cell.parameters if cell.parameters else None)
    return each * tokens if each else None


def find_trends(analysis: Analysis) -> list[Trend]:
    """Return the trend of every cell but the baseline, in the study's order; [] without a scale axis."""
    return _trends_of(analysis.ladder) if analysis.ladder else []


@lru_cache(maxsize=1)  # used by the figures, sentences, tables and record of a report
def _trends_of(ladder: Ladder) -> list[Trend]:
    sizes = {name: (found, training_flops(found.base)) for name, found in ladder.sizes.items()}
    known = {name: (found, compute) for name, (found, compute) in sizes.items() if compute}
    cells = dict.fromkeys(cell.name for found, _ in known.values() for cell in found.compared)
    curve = _loss_curve(known)
    return [_trend(cell, known, curve, ladder.study.predict) for cell in cells]


def _trend(
    name: str, sizes: Mapping[str, tuple[Analysis, float]], curve: scaling.LossCurve | None, predict: float | None
) -> Trend:
    points, gains = [], {}
    for size, (analysis, compute) in sizes.items():
        cell = analysis.cells.get(name)
        effect, own = (cell.effect, training_flops(cell)) if cell else (None, None)
        if effect is None or effect.error is None or effect.df is None or effect.low is None or effect.high is None:
            continue
        points.append(Point(size, compute, effect.mean, effect.error, effect.df))
        if curve and own:
            gains[size] = scaling.find_gain(curve, compute, own, (effect.mean, effect.low, effect.high))
    line = scaling.fit_line(points)
    if line is None:
        return Trend(name, None, gains=gains)
    *_, before, last = sorted(point.compute for point in points)
    factor = predict or min(FARTHEST, last / before)
    return Trend(name, line, line.at(last * factor) if len(points) >= scaling.FEWEST_SIZES else None, gains)


def _loss_curve(sizes: Mapping[str, tuple[Analysis, float]]) -> scaling.LossCurve | None:
    """Return the baseline's loss over compute; None if the measure is no loss or a size has no result."""
    found = []
    for analysis, compute in sizes.values():
        base, noise = analysis.base, analysis.noise
        if base is None or base.mean is None or not analysis.measure.is_loss:
            return None
        found.append((compute, base.mean, noise / math.sqrt(len(base.values)) if noise else 0.0))
    return scaling.fit_loss(*zip(*found, strict=True)) if found else None


def record(analysis: Analysis) -> dict[str, Any] | None:
    """Return the trends for `report --json`, None without a scale axis."""
    if analysis.ladder is None:
        return None
    return {
        "shown": analysis.ladder.shown,
        "sizes": [{"size": name, "flops": training_flops(found.base)} for name, found in analysis.by_size.items()],
        "trends": [_trend_record(trend) for trend in find_trends(analysis)],
    }


def _trend_record(trend: Trend) -> dict[str, Any]:
    line = trend.line
    low, high, p = line.slope_interval if line else (None, None, None)
    return {
        "cell": trend.cell,
        "intercept": line.intercept if line else None,
        "slope": line.slope if line else None,
        "slope_low": low,
        "slope_high": high,
        "slope_p": p,
        "lack_of_fit_p": line.lack_of_fit if line else None,
        "predicted": _prediction_record(trend.ahead),
        "gains": {size: asdict(gain) for size, gain in trend.gains.items()},
    }


def _prediction_record(ahead: Prediction | None) -> dict[str, Any] | None:
    names = ("effect", "low", "high", "seen_low", "seen_high", "extrapolated")
    return {"flops": ahead.compute, **{name: getattr(ahead, name) for name in names}} if ahead else None


def grid(line: Line, start: float, end: float, count: int = 25) -> list[Prediction]:
    """Return the line at `count` compute values, evenly spaced on a log scale."""
    step = math.log(end / start) / (count - 1)
    return [line.at(start * math.exp(i * step)) for i in range(count)]


def changing(trends: Sequence[Trend], word: str) -> list[str]:
    """Return the cells whose effect is shown to change with compute in the direction `word`."""
    return [trend.cell for trend in trends if trend.shown and trend.direction == word]
