"""Report text on tuned arms: their best values, and what a comparison at the baseline's best value would have shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report.content import Block, Row, Table
from ablatrix.orchestrator.report.formatting import DASH, join_names, plain, signed, span_text
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.statistics import Effect
    from ablatrix.orchestrator.report.tuned import Tuned

HEAD = ("cell", "best value", "sensitivity", "effect at own best", "verdict", "at the baseline's best", "verdict there")


def blocks(analysis: Analysis, figure: Sequence[Block]) -> list[Block]:
    """Return the section on tuning; [] for a study without tuning."""
    found = analysis.tuned
    if found is None:
        return []
    return [method(analysis), *figure, _table(analysis, found)]


def notes(analysis: Analysis) -> Iterator[str]:
    """Yield warnings: optima at the edge of the grid, and verdicts that would differ at the baseline's best value."""
    found = analysis.tuned
    if found is None:
        return
    if not found.ended:
        yield "The tuning runs have not ended: best values are provisional, and nothing is confirmed yet."
    known = {name: arm.optimum for name, arm in found.arms.items() if arm.optimum}
    if edges := [f"{name} ({optimum.value:g})" for name, optimum in known.items() if optimum.at_edge]:
        yield (
            f"Best {found.tune.setting} at the edge of the grid: {join_names(edges)}; the true optimum may lie "
            "beyond, so extend the grid, or add values in between if the next value diverged."
        )
    if unknown := [name for name in found.arms if name not in known]:
        yield f"No tuning run of {join_names(unknown)} has a result yet."
    yield from differing(analysis)


def differing(analysis: Analysis) -> list[str]:
    """Return a sentence for each cell whose verdict differs at the baseline's best value."""
    found, base = analysis.tuned, _best(analysis)
    if found is None:
        return []
    texts = []
    for cell in analysis.compared:
        there = found.verdicts.get(cell.name)
        if there is None or there is cell.verdict or cell.effect is None or cell.effect.p_joint is None:
            continue
        if not (there.decided or cell.verdict.decided):
            continue
        optimum = found.arms[cell.name].optimum
        own = f"{optimum.value:g}" if optimum else "?"
        unit, digits = analysis.measure.short_unit, analysis.decimals
        texts.append(
            f"{cell.name}: at the baseline's best {found.tune.setting} ({base}) {there} "
            f"({signed(found.equal[cell.name].mean, digits)}{unit}), at its own best ({own}) {cell.verdict} "
            f"({signed(cell.effect.mean, digits)}{unit})."
        )
    return texts


def _best(analysis: Analysis) -> str:
    found = analysis.tuned
    optimum = found.arms[found.reference].optimum if found else None
    return f"{optimum.value:g}" if optimum else "not known"


def method(analysis: Analysis) -> str:
    """Return how the cells were tuned; "" for a study that was not."""
    found = analysis.tuned
    if found is None:
        return ""
    grid = ", ".join(f"{value:g}" for value in found.tune.grid)
    fresh = max((len(arm.confirmed) for arm in found.arms.values()), default=0)
    return (
        f"Each cell was trained at {found.tune.setting} {grid} with {count(len(found.tune.seeds), 'tuning seed')}. Its "
        "best value is the minimum of a parabola over the logarithm, through the best mean and its neighbors, rounded "
        "to steps of at most 19% between "
        f"the values. Verdicts compare each cell at its own best value with the baseline at its best, on "
        f"{count(fresh, 'other seed')}. Sensitivity: mean excess over the best result across the grid."
    )


def _table(analysis: Analysis, found: Tuned) -> Table:
    digits = analysis.decimals
    rows = []
    for name, arm in found.arms.items():
        cell, optimum = analysis.cells.get(name), arm.optimum
        base = name == found.reference
        row = [
            name,
            f"{optimum.value:g}" + (" (edge)" if optimum.at_edge else "") if optimum else DASH,
            plain(optimum.sensitivity, digits) if optimum else DASH,
            DASH if base else _with_interval(cell.effect if cell else None, digits),
            str(cell.verdict) if cell else DASH,
            DASH if base else _with_interval(found.equal.get(name), digits),
            DASH if base else str(found.verdicts.get(name, DASH)),
        ]
        rows.append(Row(row, base))
    return Table(HEAD, rows, left=(0, 4, 6))


def _with_interval(effect: Effect | None, digits: int) -> str:
    """Return `−0.034 (−0.051 to −0.017)`: the effect with its simultaneous interval."""
    if effect is None:
        return DASH
    interval = span_text(effect.joint_low, effect.joint_high, digits)
    return signed(effect.mean, digits) + (f" ({interval})" if interval != DASH else "")
