"""The report of a study: which features helped, by how much, and how sure that is.

collect.py reads, analysis.py compares (statistics.py), plots.py decides what to draw, figures.py and svg.py draw it,
wording.py and methods.py put it into words, document.py arranges it, page.py, markdown.py and tables.py write it, and
output.py puts it on disk. The heavy imports wait until `build` is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.report.analysis import Analysis

FOLDER = "report"


@dataclass(frozen=True)
class VerdictRow:
    """A cell in the verdict table. effect and interval: nats per token against the baseline, negative is better."""

    cell: str
    done: int
    total: int
    val_nll: float | None
    effect: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    verdict: str
    sentence: str


@dataclass(frozen=True)
class Report:
    """What was found, for the terminal, and the files written. p_value: corrected by Holm's method."""

    name: str
    rows: tuple[VerdictRow, ...]
    notes: tuple[str, ...]
    paths: tuple[Path, ...]


def build(
    study_dir: Path, states: Mapping[str, str | tuple[str, str]] | None = None, interactive: bool = False
) -> Report:
    """Write the report of a study into `study_dir/report/`.

    states: run id -> state or (state, reason); a run not named counts as done if it left a summary, else as planned.
    Raises UserError where `study_dir` holds no study, RunError where the report cannot be written.
    """
    from orchestrator.report import collect, output
    from orchestrator.report.analysis import analyse

    study = collect.read_study(study_dir, states or {})
    analysis = analyse(study)
    paths = output.refresh(study_dir / FOLDER, f"{study.digest} {interactive}", lambda: contents(analysis, interactive))
    return _report(analysis, paths)


def contents(analysis: Analysis, explorable: bool) -> dict[str, bytes | str]:
    """Every file of the report: name -> content, a pure function of the analysis."""
    from orchestrator.report import document, figures, interactive, markdown, page, plots, tables

    study = analysis.study
    drawn = plots.build_figures(analysis)
    sections = document.compose(analysis, drawn, interactive.data(analysis) if explorable else "")
    scripts, css = (interactive.scripts(), interactive.style()) if explorable else ([], "")
    title, subtitle = f"Ablation: {study.name}", document.subtitle(analysis)
    files: dict[str, bytes | str] = {
        "summary.csv": tables.summary(analysis),
        "comparison.csv": tables.comparison(analysis),
        "comparison.tex": tables.latex(analysis),
        "report.md": markdown.render(title, subtitle, sections),
        "report.html": page.render(title, subtitle, sections, scripts, css),
    }
    for figure in drawn:
        for kind, content in figures.draw(figure).items():
            files[f"{figure.name}.{kind}"] = content
    return files


def _report(analysis: Analysis, paths: tuple[Path, ...]) -> Report:
    from orchestrator.report import wording

    rows = []
    for cell in analysis.cells.values():
        effect = cell.effect
        known = effect is not None and effect.low is not None and effect.high is not None
        rows.append(
            VerdictRow(
                cell=cell.name,
                done=cell.done,
                total=len(cell.runs),
                val_nll=cell.mean,
                effect=effect.mean if effect else None,
                interval=(effect.low, effect.high) if known else None,  # type: ignore[union-attr, arg-type]
                p_value=cell.p_holm,
                verdict=wording.verdict(cell, analysis),
                sentence=wording.sentence(cell, analysis),
            )
        )
    return Report(analysis.study.name, tuple(rows), tuple(wording.notes(analysis)), paths)
