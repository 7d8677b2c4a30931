"""Several studies side by side: the same cells, study by study, and tests of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.report import formatting, notes, tables, two_studies, wording
from ablatrix.orchestrator.report.content import Block, Notes, Row, Section, Table
from ablatrix.orchestrator.report.contrasts import Contrast
from ablatrix.orchestrator.report.figure_data import Figure, Forest
from ablatrix.orchestrator.report.forests import contrast_columns, contrast_row, effect_row, forest_limits
from ablatrix.orchestrator.report.formatting import DASH, plain, quantity
from ablatrix.orchestrator.report.record import contrast_record
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.study.metric import Measure


def label_studies(analyses: Sequence[Analysis]) -> list[str]:
    """Return one name per study, with its folder if several studies have the same name."""
    names = [a.study.name for a in analyses]
    return [n if names.count(n) == 1 else f"{n} ({a.study.folder.name})" for n, a in zip(names, analyses, strict=True)]


def measure(analyses: Sequence[Analysis]) -> Measure:
    """Return the measure by which all studies are compared. Raises UserError if they differ."""
    found = {a.measure for a in analyses if a.base} or {a.measure for a in analyses}
    if len({(m.name, m.unit, m.higher_is_better) for m in found}) > 1:
        measures = ", ".join(
            f"{name}: {a.measure.label}" for name, a in zip(label_studies(analyses), analyses, strict=True)
        )
        raise UserError(f"these studies use different measures ({measures}); report each on its own")
    return found.pop()


def cell_names(analyses: Sequence[Analysis]) -> list[str]:
    """Return every cell that is compared in any study, in order of first appearance."""
    return list(dict.fromkeys(cell.name for a in analyses for cell in a.compared))


def forest(analyses: Sequence[Analysis]) -> Figure:
    """Return the effects as a forest plot, grouped by cell, with one row per study."""
    names, rows = label_studies(analyses), []
    columns = {"effect": "effect", "verdict": "verdict", "95% interval": "interval", "runs": "runs"}
    for cell in cell_names(analyses):
        for name, analysis in zip(names, analyses, strict=True):
            result = analysis.cells.get(cell)
            if result is not None and result.name != analysis.reference:
                rows.append(effect_row(result, analysis, columns.values(), f"{cell} · {name}"))
    shared = measure(analyses)
    caption = (
        f"Effect of each cell on the {shared.name}, within each study (cell − baseline of the same study; "
        f"{shared.better_side}). Thick bars: pointwise 95% confidence intervals; thin bars: 95% intervals simultaneous "
        "over the comparisons of a study. Overlapping intervals do not show that two effects are equal."
    )
    drawn = Forest(
        tuple(rows),
        tuple(columns),
        replace(shared, name=f"{shared.name}, difference from the study's baseline").label,
        forest_limits(rows),
        ends=shared.sides("better", "worse"),
        first="cell and study",
    )
    return Figure("effects", "Effects by study", caption, forest=drawn)


def headline(analyses: Sequence[Analysis]) -> str:
    """Return the significant differences, followed by the name and headline of each study."""
    names, digits, unit = label_studies(analyses), max(a.decimals for a in analyses), measure(analyses).short_unit
    found = [c for c in differences(analyses) if c.effect and c.effect.p_joint is not None]
    shown = [
        f"{_without(c.name, names)} ({formatting.signed(c.effect.mean, digits)}{unit})"
        for c in found
        if c.effect and c.decided
    ]
    between = f"{names[1]} differs from {names[0]} in the " if len(names) == 2 else "Differences in the "
    none = "No difference between the studies is significant."
    parts = [f"{between}{formatting.join_names(shown)}." if shown else none] if found else []
    return " ".join([*parts, *(f"{name}: {wording.headline(a)}" for name, a in zip(names, analyses, strict=True))])


def _without(name: str, studies: Sequence[str]) -> str:
    """Return the name of a difference, leaving out the studies if there are only two."""
    return name.removesuffix(f" · {studies[1]} − {studies[0]}") if len(studies) == 2 else name


def compose(analyses: Sequence[Analysis], figure: Figure, tested: Figure | None) -> list[Section]:
    """Return the sections: studies with caveats on their comparability, differences, and effects by study."""
    blocks: list[Block] = [_studies(analyses)]
    named = zip(label_studies(analyses), analyses, strict=True)
    of_studies = [f"{name}: {note}" for name, analysis in named for note in notes.notes(analysis)]
    if found := [*caveats(analyses), *of_studies]:
        blocks.append(Notes(found))
    return [
        Section("studies", "Studies", blocks),
        *([Section("differences", "Differences", [tested])] if tested else []),
        Section("effects", "Effects", [figure]),
    ]


def _studies(analyses: Sequence[Analysis]) -> Table:
    rows = []
    for name, analysis in zip(label_studies(analyses), analyses, strict=True):
        runs, base = analysis.study.runs, analysis.base
        cells = [
            name,
            analysis.study.file or DASH,
            f"{sum(run.finished for run in runs)}/{len(runs)}",
            str(len({run.seed for run in runs})),
            plain(base.mean if base else None, analysis.decimals),
            plain(base.sd if base else None, analysis.decimals + 1),
            quantity(base.parameters if base else None),
            quantity(base.average("tokens") if base else None),
        ]
        rows.append(Row(cells))
    head = ["study", "file", "runs", "seeds", f"baseline {measure(analyses).name}", "seed SD", "parameters", "tokens"]
    return Table(head, rows, (0, 1))


def differences(analyses: Sequence[Analysis]) -> list[Contrast]:
    """Return how baselines and effects of the second and later studies differ from those of the first.

    Each later study has a table of its own, corrected separately.
    """
    names, first = label_studies(analyses), analyses[0]
    found = []
    for name, other in zip(names[1:], analyses[1:], strict=True):
        labels, pairs = [], []
        if first.base and other.base:
            labels.append(f"{other.base.name} · {name} − {names[0]}")
            pairs.append([two_studies.estimate_of_mean(a.base.values) for a in (first, other) if a.base])
        for cell in (c.name for c in first.compared if c.name in other.cells and c.name != other.reference):
            labels.append(f"effect of {cell} · {name} − {names[0]}")
            pairs.append([two_studies.estimate_of_effect(a.cells[cell].effect) for a in (first, other)])
        effects = [two_studies.difference(one, two) if one and two else None for one, two in pairs]
        found += [Contrast(*pair) for pair in zip(labels, two_studies.corrected(effects), strict=True)]
    return found


def difference_figure(analyses: Sequence[Analysis]) -> Figure | None:
    """Return the tested differences between studies as a forest plot."""
    contrasts = [c for c in differences(analyses) if c.effect]
    if not contrasts:
        return None
    shared, digits = measure(analyses), max(a.decimals for a in analyses)
    better, worse = shared.better, "lower" if shared.higher_is_better else "higher"
    rows = [contrast_row(contrast, shared, (better, worse, "inconclusive"), digits) for contrast in contrasts]
    names = label_studies(analyses)
    between = f"{names[1]} − {names[0]}" if len(names) == 2 else ""  # with two studies, named once for all rows
    rows = [replace(row, label=_without(row.label, names)) for row in rows]
    caption = (
        "Differences between studies, treated as independent samples (Welch). Thick bars: pointwise 95% confidence "
        "intervals; thin bars: 95% intervals simultaneous over the table (Bonferroni), which decide the verdict."
    )
    label = replace(shared, name=f"{shared.name}, difference between studies").label
    ends = (f"lower {shared.short_name}", f"higher {shared.short_name}")
    head, first = ("change", *contrast_columns(len(rows))), between or "of"
    drawn = Forest(tuple(rows), head, label, forest_limits(rows), ends=ends, first=first)
    return Figure("differences", "Differences between the studies", caption, forest=drawn)


def record(analyses: Sequence[Analysis]) -> list[dict[str, Any]]:
    """Return the differences for `report --json`."""
    return [contrast_record(contrast) for contrast in differences(analyses)]


def caveats(analyses: Sequence[Analysis]) -> list[str]:
    """Return caveats that limit comparability between the studies."""
    found = []
    for key, text in (
        ("data_fingerprint", "The studies read different data"),
        ("val_tokens", "The studies have held-out sets of different sizes"),
    ):
        if len({str(r.summary[key]) for a in analyses for r in a.study.runs if key in r.summary}) > 1:
            found.append(f"{text}: compare effects, not losses.")
    if len({str(r.setting("data.tokenizer")) for a in analyses for r in a.study.runs if r.config}) > 1:
        found.append(f"The studies use different tokenizers: their {measure(analyses).name} is not comparable.")
    for cell in cell_names(analyses):
        settings = [str(sorted(a.cells[cell].runs[0].overrides.items())) for a in analyses if cell in a.cells]
        if len(set(settings)) > 1:
            found.append(f"{cell} has different settings in different studies.")
    return found


def comparison(analyses: Sequence[Analysis]) -> str:
    """Return comparison.csv for all studies: one row per cell of each study."""
    renamed = [
        replace(a, study=replace(a.study, name=n)) for n, a in zip(label_studies(analyses), analyses, strict=True)
    ]
    return tables.comparisons(renamed)
