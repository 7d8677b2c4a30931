"""Judge a study at its planned looks: which cells are decided at which look, and which runs come next.

At each look, the cells still open, and those decided earlier with the runs they had then, are compared with the
baseline at the look's share of the error rate. By the union bound, the probability of a false verdict at any look is at
most the sum of these shares. A cell's intervals and verdict are those of the look at which it stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from scipy.special import ndtr, ndtri

from ablatrix.orchestrator.report import analysis, gate
from ablatrix.orchestrator.report.decisions import Verdict
from ablatrix.orchestrator.report.formatting import join_names
from ablatrix.orchestrator.report.progress import Progress
from ablatrix.orchestrator.report.stages import ENDED, NOT_NEEDED, Stages

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import Analysis
    from ablatrix.orchestrator.report.cell_result import CellResult
    from ablatrix.orchestrator.report.collect import Study
    from ablatrix.orchestrator.report.statistics import Effect
    from ablatrix.orchestrator.study.looks import Looks

UNDECIDED = (Verdict.INCONCLUSIVE, Verdict.UNSTABLE)


def analyze(study: Study) -> Analysis:
    """Compare the cells of a study with its baseline: at its planned looks, or all runs at once if it has none."""
    looks = study.looks
    if looks is None:
        return analysis.analyze(gate.shown_part(study))
    progress, judged, latest = take_looks(study, looks)
    if latest is None:
        first = analysis.analyze(_at_look(study, looks, 0, {}), looks.alpha[0])
        cells = {name: _without_verdict(cell) for name, cell in first.cells.items()}
        return replace(first, study=shown_part(study, looks, progress), cells=cells, progress=progress)
    cells = {name: judged.get(name, cell) for name, cell in latest.cells.items()}
    return replace(latest, study=shown_part(study, looks, progress), cells=cells, progress=progress)


def take_looks(study: Study, looks: Looks) -> tuple[Progress, dict[str, CellResult], Analysis | None]:
    """Return the study's progress, the result of each cell that stopped, and the analysis at the latest look.

    A look ends when every run that belongs to it has ended, with or without a result.
    """
    stopped: dict[str, int] = {}
    judged: dict[str, CellResult] = {}
    latest, ended = None, 0
    futile: list[str] = []
    going_on: tuple[str, ...] = ()
    for look, alpha in enumerate(looks.alpha):
        part = _at_look(study, looks, look, stopped)
        if not all(run.state in ENDED for run in part.runs if run.cell not in stopped):
            break
        latest, ended, last = analysis.analyze(part, alpha), look + 1, look + 1 == len(looks)
        open_before = [cell for cell in latest.compared if cell.name not in stopped]
        undecided = [cell for cell in open_before if _is_open(cell) and not last]
        futile += [cell.name for cell in undecided if _is_futile(cell, latest, looks, look)]
        going_on = tuple(cell.name for cell in undecided if cell.name not in futile)
        for cell in open_before:
            if cell.name not in going_on:
                stopped[cell.name], judged[cell.name] = ended, cell
        if not going_on:
            break
    return Progress(looks, ended, stopped, tuple(futile), going_on), judged, latest


def _is_open(cell: CellResult) -> bool:
    """True if more seeds can change what is known of a cell: it has runs to compare and no verdict."""
    no_interval = cell.verdict is Verdict.NO_CLAIM and not cell.incomparable
    return bool(cell.values) and (cell.verdict in UNDECIDED or no_interval)


def _is_futile(cell: CellResult, analysis: Analysis, looks: Looks, look: int) -> bool:
    """True if a cell is unlikely to be decided by the last look; not with a margin: more seeds may show `no effect`."""
    if cell.effect is None or cell.verdict is not Verdict.INCONCLUSIVE or analysis.margin is not None:
        return False
    return conditional_power(cell.effect, looks, look, len(analysis.compared)) < looks.futility


def conditional_power(effect: Effect, looks: Looks, look: int, comparisons: int) -> float:
    """Return the probability that the last look decides an effect, if the effect is as large as its current estimate.

    look: number of the look that has ended, from 0, not the last. Uses the normal approximation, with the error rate of
    the last look shared by all comparisons with the baseline (Lan & Wittes 1988).
    """
    if not effect.error:
        return 1.0
    seen = looks.seeds[look] / looks.seeds[-1]
    z = abs(effect.mean) / effect.error
    critical = ndtri(1 - looks.alpha[-1] / (2 * comparisons))
    return float(ndtr((z / math.sqrt(seen) - critical) / math.sqrt(1 - seen)))


def _at_look(study: Study, looks: Looks, look: int, stopped: Mapping[str, int]) -> Study:
    """Return the study at a look (from 0); cells that stopped earlier keep the runs they had then."""
    number = seed_numbers(study)
    last = {name: min(look, stopped.get(name, len(looks)) - 1) for name in study.cells}
    return study.with_runs(run for run in study.runs if looks.of_seed(number[run.seed]) <= last[run.cell])


def seed_numbers(study: Study) -> dict[int, int]:
    """Return the number, from 1, of each seed of the study."""
    return {seed: number for number, seed in enumerate(sorted({run.seed for run in study.runs}), start=1)}


def shown_part(study: Study, looks: Looks, progress: Progress) -> Study:
    """Return the study with the runs that have started or are due."""
    later = find_later_runs(study, looks, progress)
    return study.with_runs(run for run in study.runs if run.state != "planned" or not later.get(run.id))


def _without_verdict(cell: CellResult) -> CellResult:
    if cell.effect is None or cell.verdict is Verdict.BASELINE:
        return cell
    return replace(cell, verdict=Verdict.NO_CLAIM, pending="the first look has not ended")


def find_stages(study: Study) -> Stages:
    """Return the runs after the first planned look, and a line about the looks for `status`."""
    looks = study.looks
    if looks is None:
        return Stages()
    progress, judged, _ = take_looks(study, looks)
    lines = describe(progress, judged)
    return Stages(find_later_runs(study, looks, progress), lines, lines if progress.ended else ())


def describe(progress: Progress, judged: Mapping[str, CellResult]) -> list[str]:
    """Return `look 1 of 3 has ended (error rate spent: 0.01 of 0.05): rope stopped (helps); swiglu goes on`."""
    number, total = len(progress.looks), sum(progress.looks.alpha)
    if not progress.ended:
        return [f"look 1 of {number} comes when the first {progress.looks.seeds[0]} seeds of every cell have ended"]
    words: dict[str, list[str]] = {}
    for name, look in progress.stopped.items():
        why = f"{judged[name].verdict}, futility" if name in progress.futile else judged[name].verdict
        words.setdefault(f"stopped at look {look} ({why})", []).append(name)
    if progress.going_on:
        words[f"{'goes' if len(progress.going_on) == 1 else 'go'} on with the baseline"] = list(progress.going_on)
    parts = [f"{join_names(names)} {text}" for text, names in words.items()]
    spent = f"error rate spent: {progress.spent:g} of {total:g}"
    return [f"look {progress.ended} of {number} has ended ({spent}): {'; '.join(parts)}"]


def find_later_runs(study: Study, looks: Looks, progress: Progress) -> dict[str, str]:
    """Return the runs beyond the first look: id -> why it is not queued now, '' if it is due."""
    number = seed_numbers(study)
    found = {}
    for run in study.runs:
        look = looks.of_seed(number[run.seed]) + 1
        if look > 1:
            stop = progress.stopped.get(run.cell, progress.ended if progress.finished else len(looks))
            if look > stop:
                who = "its cell" if run.cell in progress.stopped else "every cell"
                found[run.id] = f"{NOT_NEEDED}: {who} has stopped by look {stop}"
            elif look > progress.ended + 1:
                found[run.id] = f"waits for look {look - 1} of {len(looks)} to end"
            else:
                found[run.id] = ""
    return found
