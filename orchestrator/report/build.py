"""Build the report of a study, or of several side by side.

collect.py reads the runs, analysis.py compares the cells (statistics.py), figures.py chooses what to draw, drawing.py
draws it, verdicts.py, notes.py and methods.py describe the results, document.py arranges the page, pages.py and
tables.py write the files, and output.py puts them on disk. Heavy imports wait until `build` is called.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.study.metric import NLL, Measure
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.content import Section
    from ablatrix.orchestrator.report.figure_data import Figure, Forest
    from ablatrix.orchestrator.report.wording import CellText

FOLDER = "report"
SCHEMA = 1  # version of the JSON record; incremented when a field changes its meaning or is removed
PDF = "report.pdf"
ON_PAPER = ("main_effects", "interactions", "effects", "loss_curves")


@dataclass(frozen=True)
class VerdictRow:
    """A row of the verdict table. text: the columns that every table shows; sentence: the verdict with its evidence."""

    cell: str
    verdict: str
    text: CellText
    sentence: str


@dataclass(frozen=True)
class Report:
    """Results for the terminal, and the files written.

    headline: the result in one sentence; more: sentences on the A/A check and on the features' shares of their joint
    effect; differences: between studies, set by `compare`; make_record: returns the JSON record.
    """

    name: str
    headline: str
    rows: tuple[VerdictRow, ...]
    notes: tuple[str, ...]
    paths: tuple[Path, ...]
    make_record: Callable[[], Mapping[str, Any]]
    measure: Measure = NLL
    more: tuple[str, ...] = ()
    interval_name: str = "95% interval"
    p_name: str = "p (corrected)"
    differences: Forest | None = None

    @property
    def record(self) -> Mapping[str, Any]:
        """The record that `report --json` prints."""
        return self.make_record()

    @property
    def results(self) -> dict[str, Any]:
        """The headline and the verdicts, as sent in notifications about the study."""
        cells = [{"cell": row.cell, "verdict": str(row.verdict)} for row in self.rows]
        return {"headline": self.headline, "cells": cells}


@contextmanager
def paused_collector() -> Iterator[None]:
    """Keep the garbage collector from scanning thousands of runs, none of which is garbage, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@paused_collector()
def build(study_dir: Path, states: Mapping[str, str | tuple[str, str]] | None = None, with_pdf: bool = False) -> Report:
    """Write the report of a study into `study_dir/report/`.

    states: run id -> state or (state, reason); a run without one counts as done if it left a summary, else as planned.
    with_pdf: also write report.pdf and every figure as PDF, which later reports then update. Raises UserError if
    `study_dir` contains no study, RunError if the report cannot be written.
    """
    from ablatrix.orchestrator.report import collect, notes, output, record, waterfall, wording
    from ablatrix.orchestrator.report.looks import analyze

    study = collect.read_study(study_dir, states or {})
    analysis = analyze(study)
    folder = study_dir / FOLDER
    with_pdf = with_pdf or (folder / PDF).exists()
    headline, warnings = wording.headline(analysis), notes.notes(analysis)
    paths = output.refresh(
        folder, f"{study.digest} {with_pdf}", lambda: contents(analysis, headline, warnings, with_pdf)
    )
    return Report(
        name=study.name,
        headline=headline,
        rows=tuple(verdict_rows(analysis)),
        notes=tuple(warnings),
        paths=paths,
        measure=analysis.measure,
        more=tuple(filter(None, (waterfall.sentence(analysis), wording.aa_sentence(analysis)))),
        interval_name=analysis.interval_name,
        p_name=analysis.p_name,
        make_record=lambda: {**record.record_of(analysis), "files": [str(path) for path in paths]},
    )


def contents(
    analysis: Analysis, headline: str, warnings: Sequence[str], with_pdf: bool = False
) -> dict[str, bytes | str]:
    """Return every file of the report: name -> content. A pure function of the analysis, its headline and its notes."""
    from ablatrix.orchestrator.report import document, figures, tables

    drawn = figures.build_figures(analysis, headline)
    sections = document.compose(analysis, drawn, warnings)
    title, subtitle = f"Ablation: {analysis.study.name}", document.subtitle(analysis)
    files: dict[str, bytes | str] = {
        "summary.csv": tables.summary(analysis),
        "comparison.csv": tables.comparison(analysis),
        "comparison.tex": tables.latex(analysis),
    }
    if with_pdf:
        from ablatrix.orchestrator.report import methods, pdf

        names = ON_PAPER if analysis.main_effects else ("effects", "loss_curves")
        shown = [figure for name in names for figure in drawn if figure.name == name]
        files[PDF] = pdf.write(title, headline, subtitle, shown, methods.paragraphs(analysis))
    return files | _pages((title, headline, subtitle), sections, drawn, with_pdf=with_pdf)


def _pages(
    heads: tuple[str, str, str], sections: Sequence[Section], drawn: Sequence[Figure], *, with_pdf: bool = False
) -> dict[str, bytes | str]:
    """Return the pages and images. heads: title, headline and subtitle."""
    from ablatrix.orchestrator.report import drawing, pages

    made = drawing.draw_all(drawn, with_pdf=with_pdf)
    files: dict[str, bytes | str] = {
        "report.md": pages.markdown(*heads, sections),
        "report.html": pages.html(*heads, sections, {name: one.svg for name, one in made.items()}),
    }
    for name, one in made.items():
        files |= {f"{name}.png": one.png} | ({f"{name}.pdf": one.pdf} if with_pdf else {})
    return files


def compare(
    study_dirs: Sequence[Path],
    states: Sequence[Mapping[str, str | tuple[str, str]]] | None = None,
    folder: Path | None = None,
) -> Report:
    """Write a report of several studies side by side, with tests of their differences.

    states: as for `build`, one mapping per study. folder: where to write, by default `compare-<names>` next to the
    first study. The rows of the Report are named `cell · study`. Raises UserError and RunError like `build`, and
    UserError for fewer than two studies.
    """
    from ablatrix.orchestrator.report import collect, output, side_by_side
    from ablatrix.orchestrator.report.looks import analyze

    if len(study_dirs) < 2:
        raise UserError("side by side: give at least two studies")
    states = states or [{}] * len(study_dirs)
    analyses = [analyze(collect.read_study(d, s)) for d, s in zip(study_dirs, states, strict=True)]
    if folder is None:
        joined = "-".join(d.resolve().name for d in study_dirs)
        first = study_dirs[0] if study_dirs[0].name else study_dirs[0].resolve()
        folder = first.parent / f"compare-{joined}"[:120]
    inputs = " ".join(a.study.digest for a in analyses)
    paths = output.refresh(folder, inputs, lambda: _side_by_side(analyses))
    names = side_by_side.label_studies(analyses)
    rows = [
        replace(row, cell=f"{row.cell} · {name}")
        for name, a in zip(names, analyses, strict=True)
        for row in verdict_rows(a)
    ]
    tested = side_by_side.difference_figure(analyses)
    return Report(
        ", ".join(names),
        side_by_side.headline(analyses),
        tuple(rows),
        tuple(side_by_side.caveats(analyses)),
        paths,
        lambda: {"differences": side_by_side.record(analyses)},
        side_by_side.measure(analyses),
        differences=tested.forest if tested else None,
    )


def _side_by_side(analyses: Sequence[Analysis]) -> dict[str, bytes | str]:
    from ablatrix.orchestrator.report import side_by_side

    figure, tested = side_by_side.forest(analyses), side_by_side.difference_figure(analyses)
    subtitle = ", ".join(side_by_side.label_studies(analyses))
    lead = side_by_side.headline(analyses)
    pages = _pages(
        ("Studies side by side", lead, subtitle),
        side_by_side.compose(analyses, figure, tested),
        [figure, *([tested] if tested else [])],
    )
    return {"comparison.csv": side_by_side.comparison(analyses), **pages}


def verdict_rows(analysis: Analysis) -> list[VerdictRow]:
    """Return the verdict table, one row per cell in the study's order, size by size."""
    from ablatrix.orchestrator.report import verdicts, wording

    return [
        VerdictRow(name, cell.verdict, wording.cell_text(cell, found), verdicts.sentence(cell, found))
        for name, cell, found in wording.every_cell(analysis)
    ]
