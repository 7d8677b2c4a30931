"""The figures of a report: which curves each one shows, and its caption. The figures of effects are in forests.py."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ablatrix.orchestrator.report import (
    breakdown,
    curves,
    forests,
    formatting,
    sizes_section,
    tuning_curves,
    waterfall,
    wording,
)
from ablatrix.orchestrator.report.figure_data import Figure, Line, Panel, Series

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.cell_result import CellResult

MOST_LINES = 12  # in one panel: more cannot be told apart
MOST_PANELS = 12
ALIKE = 1.02  # ratio of costs up to which a plot against cost shows nothing
SETTLED = 0.15  # axis ranges ignore this first part of training, where every curve falls steeply
LATE_START = 0.25  # fraction of training: an axis starts at the first evaluation if that is later
AXES = {"tokens": "tokens trained on", "steps": "steps"}


def build_figures(analysis: Analysis, headline: str) -> list[Figure]:
    """Return every figure that the study has data for, in page order. headline: the study's result in one sentence."""
    made = [
        forests.effects(analysis, headline),
        sizes_section.figure(analysis),
        differences(analysis),
        tuned_arms(analysis),
        loss_curves(analysis),
        schedules(analysis),
        forests.main_effects(analysis),
        forests.left_out(analysis),
        forests.combinations(analysis),
        waterfall.figure(analysis),
        context_lengths(analysis),
        cost(analysis),
    ]
    return [figure for figure in made if figure is not None]


def styles(analysis: Analysis) -> dict[str, int]:
    """Return cell -> style; the reference is 0 (ink), the others follow in the study's order."""
    return {
        name: i for i, name in enumerate([n for n in [analysis.reference] if n] + [c.name for c in analysis.compared])
    }


def chosen(analysis: Analysis, most: int) -> tuple[list[CellResult], str]:
    """Return the cells to draw, all or those with the largest effects, and a remark for the caption."""
    cells = analysis.compared
    if len(cells) <= most:
        return cells, ""
    ranked = sorted(cells, key=lambda c: -abs(c.effect.mean) if c.effect else 0.0)[:most]
    names = {c.name for c in ranked}
    left = len(cells) - most
    return [c for c in cells if c.name in names], f" The {most} largest effects; {left} more are in comparison.csv."


def differences(analysis: Analysis) -> Figure | None:
    """Return small multiples: one panel per cell with its difference from the baseline during training."""
    base = analysis.base
    if base is None:
        return None
    end = curves.span(list(analysis.cells.values()))
    cells, remark = chosen(analysis, MOST_PANELS)
    style, measure = styles(analysis), analysis.measure
    drawn = []
    for cell in cells:
        held = Line(measure.name, style[cell.name], curves.held_out_difference(cell, base), dots=True)
        lines = [held]
        if measure.is_loss:
            loss = curves.training_difference(cell, base, end)
            lines.insert(0, Line("training loss", style[cell.name], loss, light=True))
        drawn.append((cell.name, tuple(line for line in lines if len(line.series.x))))
    ranges = [difference_range(lines, end) for _, lines in drawn]
    sizes = sorted(max(-low, high) for (low, high), (_, lines) in zip(ranges, drawn, strict=True) if lines)
    if not sizes:
        return None
    alike = sizes[-1] <= 8 * sizes[len(sizes) // 2]
    common = (min(low for low, _ in ranges), max(high for _, high in ranges))
    axis = AXES[analysis.budget]
    panels = tuple(
        Panel(name, axis, f"Δ {measure.unit or measure.name}", lines, _tokens(end), common if alike else own, True)
        for (name, lines), own in zip(drawn, ranges, strict=True)
    )
    side = "above" if measure.higher_is_better else "below"
    caption = (
        f"Difference from the baseline during training, mean over paired seeds ({side} 0 is better). Line with "
        f"markers: {measure.name}, with its pointwise 95% confidence interval if there are several seeds"
    )
    caption += "; thin line: training loss on the same batches." if measure.is_loss else "."
    caption += "" if alike else " Each panel has its own scale."
    caption += f" {forests.runs_per_cell(analysis)}"
    return Figure("differences", _largest(analysis), caption + remark, panels)


def _largest(analysis: Analysis) -> str:
    """Return `Difference from the baseline: largest at the end for all_on, −0.276 nats`."""
    known = [c for c in analysis.compared if c.effect]
    if not known:
        return "Difference from the baseline"
    cell = max(known, key=lambda c: abs(c.effect.mean) if c.effect else 0.0)
    effect = formatting.signed(cell.effect.mean if cell.effect else None, analysis.decimals)
    name = wording.shown_names(analysis)[cell.name]
    return f"Difference from the baseline: largest at the end for {name}, {effect}{analysis.measure.short_unit}"


def difference_range(lines: tuple[Line, ...], end: float) -> tuple[float, float]:
    """Return a range around 0 that shows the settled part of the lines, and bands that reach up to twice as far."""
    seen = [line.series.y[(line.series.x > SETTLED * end) & np.isfinite(line.series.y)] for line in lines]
    values = np.concatenate([*seen, [0.0]])
    low, high = float(values.min()), float(values.max())
    far = 2 * max(-low, high)
    for line in lines:
        if line.series.low is not None and line.series.high is not None:
            late = line.series.x > SETTLED * end
            low = max(min(low, float(np.nanmin(line.series.low[late], initial=low))), -far)
            high = min(max(high, float(np.nanmax(line.series.high[late], initial=high))), far)
    room = 0.08 * (high - low) or 1e-3
    return low - room, high + room


def loss_curves(analysis: Analysis) -> Figure:
    """Return the raw curves of all cells in one plot."""
    cells, remark = _overlay(analysis)
    end = curves.span(cells)
    style, measure = styles(analysis), analysis.study.measure
    axis = AXES[analysis.budget]
    unit = measure.unit if measure.is_loss else ""  # the training loss has the measure's unit
    per_step = curves.tokens_per_step(cells) if axis == AXES["tokens"] else None
    held = tuple(
        Line(c.name, style[c.name], curves.held_out(c), dots=True, seeds=curves.held_out_seeds(c)) for c in cells
    )
    train = tuple(
        Line(
            c.name,
            style[c.name],
            curves.training(c, "loss", end, 60),
            seeds=curves.training_seeds(c, "loss", end, 60),
        )
        for c in cells
    )
    panels = tuple(
        Panel(
            title,
            axis,
            label,
            lines,
            _drawn_tokens(lines, end),
            settled_range(lines, end, rising),
            direct=True,
            per_step=per_step,
        )
        for title, label, lines, rising in (
            (measure.title, measure.unit, held, measure.higher_is_better),
            ("Training loss", unit, train, False),
        )
        if any(len(line.series.x) for line in lines)
    )
    caption = (
        f"Thick lines with markers: means over seeds; thin lines: single runs. {forests.runs_per_cell(analysis)} The "
        f"steep start is cut off. Training loss is averaged over equal numbers of {analysis.budget}."
    )
    return Figure("loss_curves", _best_end(analysis), caption + remark, panels)


def _best_end(analysis: Analysis) -> str:
    """Return `rope ends lowest: held-out NLL 2.981, the baseline's 3.184`."""
    base, measure = analysis.base, analysis.measure
    known = {cell.name: cell.mean for cell in analysis.compared if cell.mean is not None}
    if base is None or base.mean is None or not known:
        return "Loss curves" if measure.is_loss else "Curves"
    pick = max if measure.higher_is_better else min
    found = pick(known, key=lambda cell: known[cell])
    name, digits = wording.shown_names(analysis)[found], analysis.decimals
    best, reference = formatting.plain(known[found], digits), formatting.plain(base.mean, digits)
    if not measure.is_better(known[found] - base.mean):
        return f"No cell ends better than the baseline: {measure.name} {best} ({name}) and {reference}"
    end = "highest" if measure.higher_is_better else "lowest"
    return f"{name} ends {end}: {measure.name} {best}, the baseline's {reference}"


def _drawn_tokens(lines: tuple[Line, ...], end: float) -> tuple[float, float]:
    """Return the range of tokens, without a long empty start."""
    first = min(float(line.series.x[0]) for line in lines if len(line.series.x))
    return (first - 0.02 * end if first > LATE_START * end else 0.0), 1.02 * end


def _tokens(end: float) -> tuple[float, float]:
    """Return the range of tokens, with room for a marker at the end."""
    return 0.0, 1.02 * end


def _overlay(analysis: Analysis) -> tuple[list[CellResult], str]:
    cells, remark = chosen(analysis, MOST_LINES - 1)
    return ([analysis.base] if analysis.base else []) + cells, remark


def settled_range(lines: tuple[Line, ...], end: float, rising: bool = False) -> tuple[float, float]:
    """Return the range of all lines after the steep start; a diverging line may leave it."""
    if rising:
        mirrored = tuple(replace(line, series=replace(line.series, y=-line.series.y)) for line in lines)
        low, high = settled_range(mirrored, end)
        return -high, -low
    late = []
    for line in lines:
        x, y = line.series.x, line.series.y
        part = y[(x >= SETTLED * end) & np.isfinite(y)]
        late.append(part if len(part) else y[np.isfinite(y)])
    late = [part for part in late if len(part)]
    if not late:
        return 0.0, 1.0
    low = min(float(part.min()) for part in late)
    tops = sorted(float(part.max()) for part in late)
    high = min(tops[-1], low + 3 * max(tops[len(tops) // 2] - low, 1e-3))
    room = 0.05 * (high - low) or 0.05
    return low - room, high + room


def schedules(analysis: Analysis) -> Figure | None:
    """Return the figure of learning rates (identical ones are drawn once) and gradient norms."""
    cells, remark = _overlay(analysis)
    end = curves.span(cells)
    style = styles(analysis)
    rates: dict[bytes, Line] = {}
    for cell in cells:
        series = curves.training(cell, "lr", end)
        key = np.round(series.y, 12).tobytes()
        if len(series.x):
            rates.setdefault(key, Line(cell.name, style[cell.name], series))
    norms = tuple(Line(c.name, style[c.name], curves.training(c, "grad_norm", end, 40)) for c in cells)
    panels, axis = [], AXES[analysis.budget]
    if rates:
        lines = tuple(rates.values())
        top = max(float(np.nanmax(line.series.y)) for line in lines)
        panels.append(Panel("Learning rate", axis, "", lines, _tokens(end), (0.0, top * 1.08 or 1.0)))
    if any(len(line.series.x) for line in norms):
        low, high = settled_range(norms, end)
        panels.append(Panel("Gradient norm", axis, "", norms, _tokens(end), (max(0.0, low), high)))
    if not panels:
        return None
    caption = "Learning rate (identical schedules are drawn once) and gradient norm before clipping, mean over seeds."
    legend = tuple((c.name, style[c.name]) for c in cells)
    return Figure("schedules", "Learning rate and gradient norm", caption + remark, tuple(panels), legend=legend)


def context_lengths(analysis: Analysis) -> Figure | None:
    """Return the held-out NLL against the context length, also beyond the training block."""
    cells, remark = _overlay(analysis)
    style = styles(analysis)
    lengths = sorted({int(part.name) for part in breakdown.by_context_length(analysis)})
    series = [(c, curves.by_context(c)) for c in cells]
    lines = tuple(Line(c.name, style[c.name], Series(np.log(s.x), s.y), dots=True) for c, s in series if len(s.x))
    if max((len(line.series.x) for line in lines), default=0) < 2:
        return None
    y = np.concatenate([line.series.y for line in lines])
    x = np.log(lengths)
    room = 0.04 * (x[-1] - x[0])
    panel = Panel(
        "",
        "context length (tokens)",
        "held-out NLL (nats per token)",
        lines,
        (float(x[0] - room), float(x[-1] + room)),
        _around(y, 0.02),
        log_ticks=tuple(lengths),
    )
    trained = breakdown.trained_length(analysis.base)
    caption = "Held-out NLL of the same tokens at several context lengths after training"
    caption += f" with {trained}" if trained else ""
    caption += "; means over seeds. The table has the intervals of the effects."
    legend = tuple((line.label, line.style) for line in lines)
    title = f"Held-out NLL by context length, trained with {trained}" if trained else "Held-out NLL by context length"
    return Figure("context_lengths", title, caption + remark, (panel,), legend=legend)


def tuned_arms(analysis: Analysis) -> Figure | None:
    """Return the results of the tuning runs against the tuned setting, one line per arm, with fitted parabolas."""
    found = analysis.tuned
    if found is None:
        return None
    cells, remark = _overlay(analysis)
    return tuning_curves.draw(analysis, found, {c.name: styles(analysis)[c.name] for c in cells}, remark)


def cost(analysis: Analysis) -> Figure | None:
    """Return the measure against the cost of a run, a marker per cell; None where all runs cost the same."""
    cells, remark = _overlay(analysis)
    cells = [c for c in cells if c.mean is not None]
    base = analysis.base
    if base is None or base.mean is None:
        return None
    style = styles(analysis)
    panels = []
    measure = analysis.measure
    costs = (
        ("Training time", "seconds per run, baseline = 1", lambda c: c.seconds_per_run),
        ("Training compute", "FLOPs per run, baseline = 1", _flops),
    )
    for title, label, spent in costs:
        unit = spent(base)
        points = [(c, x / unit) for c in cells if (x := spent(c))] if unit else []
        if points and max(x for _, x in points) > ALIKE * min(x for _, x in points):
            lines = tuple(
                Line(c.name, style[c.name], Series(np.array([x]), np.array([c.mean])), dots=True) for c, x in points
            )
            panels.append(_scatter(title, label, lines, measure.label))
    if not panels:
        return None
    legend = tuple((c.name, style[c.name]) for c in cells)
    side = measure.better.capitalize()
    caption = f"Means over seeds. {side} and further left is better."
    return Figure(
        "cost", f"Final {measure.name} against the cost of a run", caption + remark, tuple(panels), legend=legend
    )


def _flops(cell: CellResult) -> float | None:
    tokens = cell.average("tokens")
    return tokens * cell.flops_per_token if tokens and cell.flops_per_token else None


def _scatter(title: str, label: str, lines: tuple[Line, ...], y_label: str) -> Panel:
    x = np.concatenate([line.series.x for line in lines])
    y = np.concatenate([line.series.y for line in lines])
    return Panel(title, label, y_label, lines, _around(x, 0.1), _around(y, 0.02))


def _around(values: np.ndarray, least: float) -> tuple[float, float]:
    """Return a range around the values, at least `least` wide: tiny differences must not look large."""
    low, high = float(values.min()), float(values.max())
    room = max(0.12 * (high - low), (least - (high - low)) / 2)
    return low - room, high + room
