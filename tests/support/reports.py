"""Reports of synthetic studies without figures, whose drawing takes longer than everything else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ablatrix.orchestrator.report import document, figures, notes, pages, wording
from ablatrix.orchestrator.report.analysis import Analysis, analyze
from ablatrix.orchestrator.report.collect import read_study
from tests.support.studies import Plan, write_study

TITLE = "Ablation: planted"


def analyse_plan(folder: Path, plan: Plan) -> Analysis:
    """Write a study into `folder` and return its analysis."""
    return analyse_folder(folder, write_study(folder, plan))


def analyse_folder(folder: Path, states: Mapping[str, str | tuple[str, str]]) -> Analysis:
    return analyze(read_study(folder, states))


def write_html(analysis: Analysis) -> str:
    """Return report.html with empty figures."""
    words = TITLE, wording.headline(analysis), document.subtitle(analysis)
    drawn = figures.build_figures(analysis, words[1])
    sections = document.compose(analysis, drawn, notes.notes(analysis))
    return pages.html(*words, sections, {figure.name: "" for figure in drawn})


def write_markdown(analysis: Analysis) -> str:
    """Return report.md."""
    words = TITLE, wording.headline(analysis), document.subtitle(analysis)
    sections = document.compose(analysis, figures.build_figures(analysis, words[1]), notes.notes(analysis))
    return pages.markdown(*words, sections)
