"""Held-out NLL by context length: how far the positions of each cell carry beyond the block they were trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ablatrix.orchestrator.report import statistics as st
from ablatrix.orchestrator.report.analysis import Analysis, CellResult, Contrast, corrected
from ablatrix.orchestrator.report.collect import RunRecord


@dataclass(frozen=True)
class ContextRow:
    """One context length. means: NLL of each cell that was evaluated; effects: against the reference, of each other.

    out_of_reach: cell -> why it was not evaluated.
    """

    length: int
    tokens: float
    means: dict[str, float]
    effects: dict[str, Contrast]
    out_of_reach: dict[str, str]


def rows(analysis: Analysis) -> tuple[ContextRow, ...]:
    """A row for each length that any run was evaluated at; the correction is over all of them."""
    entries = [(cell, run.seed, *entry) for cell in analysis.cells.values() for run in cell.usable for entry in of(run)]
    lengths = sorted({length for _, _, length, _ in entries})
    others = [cell.name for cell in analysis.compared] if analysis.reference else []
    values: dict[int, dict[str, dict[int, float]]] = {length: {} for length in lengths}
    reasons: dict[int, dict[str, str]] = {length: {} for length in lengths}
    tokens = dict.fromkeys(lengths, 0.0)
    for cell, seed, length, entry in entries:
        if "why" in entry:
            reasons[length][cell.name] = entry["why"]
            continue
        values[length].setdefault(cell.name, {})[seed] = entry["nll"]
        tokens[length] = max(tokens[length], entry["tokens"])
    flat = [_effect(name, values[length], analysis.reference) for length in lengths for name in others]
    found = iter(corrected(flat))
    return tuple(
        ContextRow(
            length,
            tokens[length],
            {name: sum(v.values()) / len(v) for name, v in values[length].items()},
            {name: next(found) for name in others},
            reasons[length],
        )
        for length in lengths
    )


def _effect(name: str, values: Mapping[str, dict[int, float]], reference: str | None) -> Contrast:
    base = values.get(reference or "", {})
    return Contrast(name, st.difference(values.get(name, {}), base) if base else None)


def of(run: RunRecord) -> list[tuple[int, dict[str, Any]]]:
    """(length, {"nll", "tokens"} or {"why"}) of a run's summary; what is neither is left out."""
    table = run.summary.get("val_nll_by_block")
    found: list[tuple[int, dict[str, Any]]] = []
    for length, entry in table.items() if isinstance(table, dict) else ():
        if not str(length).isdigit() or not isinstance(entry, dict):
            continue
        nll = entry.get("nll")
        if isinstance(nll, int | float) and np.isfinite(nll):
            found.append((int(length), {"nll": float(nll), "tokens": float(entry.get("tokens") or 0)}))
        elif entry.get("why"):
            found.append((int(length), {"why": str(entry["why"])}))
    return found


def curve(run: RunRecord) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, NLL) of a run, (L,) each."""
    points = sorted((length, entry["nll"]) for length, entry in of(run) if "nll" in entry)
    return np.array([x for x, _ in points], dtype=float), np.array([y for _, y in points])


def trained_length(cell: CellResult | None) -> int | None:
    """Tokens of a training window."""
    found = next((run.setting("data.block_size") for run in cell.runs if run.config), None) if cell else None
    return found if isinstance(found, int) else None
