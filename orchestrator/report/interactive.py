"""Curves to zoom and hover over: data and scripts for the page of `--interactive`, drawn by uPlot inside the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ablatrix.orchestrator.report import curves, plots
from ablatrix.orchestrator.report.analysis import Analysis, CellResult
from ablatrix.orchestrator.report.curves import Series
from ablatrix.trainer.rundir.console import visible

FOLDER = Path(__file__).parent
UPLOT = FOLDER / "vendor" / "uPlot.iife.min.js"
UPLOT_CSS = FOLDER / "vendor" / "uPlot.min.css"
LICENCE = FOLDER / "vendor" / "uPlot.LICENSE"
CHARTS = FOLDER / "templates" / "charts.js"
MOST_CELLS = 30
BINS = 240


def scripts() -> list[str]:
    """uPlot with its licence, then ours."""
    licence = LICENCE.read_text(encoding="utf-8").replace("*/", "")
    return [f"/*\n{licence}*/\n{UPLOT.read_text(encoding='utf-8')}", CHARTS.read_text(encoding="utf-8")]


def style() -> str:
    return UPLOT_CSS.read_text(encoding="utf-8")


def data(analysis: Analysis) -> str:
    """All charts as JSON that may stand in a script element."""
    found = {"axis": plots.AXES[analysis.budget], "budget": analysis.budget, "charts": charts(analysis)}
    text = json.dumps(found, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def charts(analysis: Analysis) -> list[dict[str, Any]]:
    """title, unit, x (P,) tokens and one series a cell; null where a cell has no value."""
    cells, _ = plots.chosen(analysis, MOST_CELLS)
    base = analysis.base
    every = [base, *cells] if base else cells
    end = curves.span(every)
    style, measure = plots.styles(analysis), analysis.study.measure
    unit, loss_unit = measure.unit, measure.unit if measure.is_loss else ""
    found = []
    if base:
        held = [(c, curves.held_out_difference(c, base)) for c in cells]
        train = [(c, curves.training_difference(c, base, end, BINS // 2)) for c in cells]
        found.append(_chart(f"{measure.title}, difference from the baseline", unit, held, style))
        found.append(_chart("Training loss, difference from the baseline", loss_unit, train, style))
    found.append(_chart(measure.title, unit, [(c, curves.held_out(c)) for c in every], style))
    for title, unit, name in (
        ("Training loss", loss_unit, "loss"),
        ("Gradient norm before clipping", "", "grad_norm"),
        ("Learning rate", "", "lr"),
    ):
        found.append(_chart(title, unit, [(c, curves.training(c, name, end, BINS)) for c in every], style))
    return [chart for chart in found if chart["x"]]


def _chart(title: str, unit: str, lines: Sequence[tuple[CellResult, Series]], style: dict[str, int]) -> dict[str, Any]:
    grids = [line.x for _, line in lines if len(line.x)]
    x = np.unique(np.concatenate(grids)) if grids else np.empty(0)
    series = [
        {"label": visible(cell.name), "style": style[cell.name], "y": _on(x, line)}
        for cell, line in lines
        if len(line.x)
    ]
    return {"title": title, "unit": unit, "x": [round(v) for v in x.tolist()], "series": series}


def _on(x: np.ndarray, line: Series) -> list[float | None]:
    """The line at the points it has, null elsewhere, to six digits."""
    values: list[float | None] = [None] * len(x)
    for place, value in zip(np.searchsorted(x, line.x), line.y.tolist(), strict=True):
        values[int(place)] = float(f"{value:.6g}")
    return values
