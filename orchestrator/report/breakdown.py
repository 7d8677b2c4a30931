"""Held-out NLL by domain and by context length: means and effects of every cell, corrected within each table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ablatrix.orchestrator.report.comparison import compare
from ablatrix.orchestrator.report.contrasts import Contrast

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.cell_result import CellResult
    from ablatrix.orchestrator.report.collect import RunRecord


@dataclass(frozen=True)
class Part:
    """A domain or a context length: the mean NLL of each evaluated cell and its effect against the reference.

    reasons: cell -> why it was not evaluated. excess: cell -> its effect here minus its effect over all domains.
    """

    name: str
    tokens: float
    means: dict[str, float]
    effects: dict[str, Contrast]
    reasons: dict[str, str]
    excess: dict[str, Contrast] = field(default_factory=dict)


def by_domain(analysis: Analysis) -> list[Part]:
    """Return one part per domain, the one with the most held-out tokens first."""
    parts = {part.name: part for part in _break_down(analysis, domains_of)}
    shifted = _break_down(analysis, _above_average) if len(parts) > 1 else []
    found = [replace(parts[part.name], excess=part.effects) for part in shifted] or list(parts.values())
    return sorted(found, key=lambda part: (-part.tokens, part.name))


def by_context_length(analysis: Analysis) -> list[Part]:
    """Return one part per context length, the shortest first."""
    return sorted(_break_down(analysis, lengths_of), key=lambda part: int(part.name))


@dataclass(frozen=True)
class Score:
    """One NLL from a run's summary. nll: None if it was not evaluated; `reason` says why."""

    name: str
    nll: float | None
    tokens: float = 0.0
    reason: str = ""


def domains_of(run: RunRecord) -> Iterator[Score]:
    """Yield the scores of a run by domain."""
    return _scores(run.summary.get("val_nll_by_domain"))


def _above_average(run: RunRecord) -> Iterator[Score]:
    """Yield the scores of a run by domain, minus its NLL over all domains."""
    scores = [score for score in domains_of(run) if score.nll is not None]
    tokens = sum(score.tokens for score in scores)
    average = sum(score.tokens * (score.nll or 0.0) for score in scores) / tokens if tokens else 0.0
    # rounding errors of equal effects must not count as spread
    return (replace(score, nll=round((score.nll or 0.0) - average, 9)) for score in scores)


def lengths_of(run: RunRecord) -> Iterator[Score]:
    """Yield the scores of a run by context length."""
    return (score for score in _scores(run.summary.get("val_nll_by_block")) if score.name.isdecimal())


def _scores(table: Any) -> Iterator[Score]:
    for name, entry in table.items() if isinstance(table, dict) else ():
        nll = entry.get("nll") if isinstance(entry, dict) else None
        if isinstance(nll, int | float) and np.isfinite(nll):
            yield Score(str(name), float(nll), float(entry.get("tokens") or 0))
        elif isinstance(entry, dict) and entry.get("why"):
            yield Score(str(name), None, reason=str(entry["why"]))


def _break_down(analysis: Analysis, scores_of: Callable[[RunRecord], Iterator[Score]]) -> list[Part]:
    tokens: dict[str, float] = {}
    values: dict[str, dict[str, dict[int, float]]] = {}  # part -> cell -> seed -> NLL
    reasons: dict[str, dict[str, str]] = {}
    for cell in analysis.cells.values():
        for run in cell.usable:
            for score in scores_of(run):
                tokens[score.name] = max(tokens.get(score.name, 0.0), score.tokens)
                if score.nll is None:
                    reasons.setdefault(score.name, {})[cell.name] = score.reason
                else:
                    values.setdefault(score.name, {}).setdefault(cell.name, {})[run.seed] = score.nll
    reference = analysis.reference or ""
    others = [cell.name for cell in analysis.compared]
    cells = {part: values.get(part, {}) for part in tokens}
    compared = {part: compare(found, reference, tables=len(cells)) for part, found in cells.items()}
    return [
        Part(
            part,
            tokens[part],
            {name: sum(by_seed.values()) / len(by_seed) for name, by_seed in found.items()},
            {name: Contrast(name, compared[part].effects.get(name), 0, compared[part].resolution) for name in others},
            reasons.get(part, {}),
        )
        for part, found in cells.items()
    ]


def context_curve(run: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    """Return (context lengths, NLL) of a run, (L,) each."""
    points = sorted((int(score.name), score.nll) for score in lengths_of(run) if score.nll is not None)
    return np.array([x for x, _ in points], dtype=float), np.array([y for _, y in points])


def trained_length(cell: CellResult | None) -> int | None:
    """Return the number of tokens of a training window."""
    found = next((run.setting("data.block_size") for run in cell.runs if run.config), None) if cell else None
    return found if isinstance(found, int) else None
