"""Tuned arms: the best value of each cell, its confirmation runs, and effects at the baseline's best value.

A cell is compared at its own best value, using confirmation runs whose seeds were not used in tuning: on the runs that
selected it, the winner of a grid looks better than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.report import budgets
from ablatrix.orchestrator.report.collect import find_reference
from ablatrix.orchestrator.report.comparison import compare
from ablatrix.orchestrator.report.decisions import Verdict, decide
from ablatrix.orchestrator.report.optimum import Optimum, find_optimum
from ablatrix.orchestrator.report.stages import ENDED, NOT_NEEDED, Stages
from ablatrix.orchestrator.study.tuning import arm_of

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.collect import RunRecord, Study
    from ablatrix.orchestrator.report.statistics import Effect
    from ablatrix.orchestrator.study.metric import Measure
    from ablatrix.orchestrator.study.tuning import Tuning


@dataclass(frozen=True)
class Arm:
    """A cell of a tuned study. optimum: None without a usable tuning run.

    confirmed, equal: its runs with fresh seeds, at its own best value and at the baseline's, including planned runs.
    """

    name: str
    optimum: Optimum | None
    confirmed: tuple[RunRecord, ...]
    equal: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Tuned:
    """The arms of a study by name. reference: the baseline; ended: True if no tuning run is still pending.

    equal, verdicts: effects at the baseline's best value and their verdicts, for cells with runs there.
    """

    tune: Tuning
    arms: Mapping[str, Arm]
    reference: str
    ended: bool
    equal: Mapping[str, Effect] = field(default_factory=dict)
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)

    @property
    def confirmation(self) -> set[str]:
        """Ids of the runs at each arm's best value and at the baseline's."""
        return {run.id for arm in self.arms.values() for run in (*arm.confirmed, *arm.equal)}


def find_arms(study: Study, tune: Tuning) -> Tuned:
    """Return the arms of a study, with the best values that its tuning runs show so far.

    If an arm has no usable tuning run yet, its first value is used as its best.
    """
    runs: dict[str, list[RunRecord]] = {}
    for run in study.runs:
        runs.setdefault(arm_of(run.cell), []).append(run)
    optima = {name: _optimum(found, study, tune) for name, found in runs.items()}
    reference = find_reference(runs) or ""
    shared = optima[reference]
    arms = {
        name: Arm(name, optimum, _at(runs[name], tune, optimum), _at(runs[name], tune, shared))
        for name, optimum in optima.items()
    }
    ended = all(run.state in ENDED for run in study.runs if tune.is_tuning(run))
    return Tuned(tune, arms, reference, ended)


def _optimum(runs: Sequence[RunRecord], study: Study, tune: Tuning) -> Optimum | None:
    results: dict[float, list[float]] = {}
    diverged: dict[float, list[float]] = {}
    for run in runs:
        if not tune.is_tuning(run):
            continue
        if run.usable and run.value is not None:
            results.setdefault(tune.value_of(run), []).append(run.value)
        elif run.diverged and (start := run.number("initial_loss")) is not None:
            diverged.setdefault(tune.value_of(run), []).append(start)
    higher = study.measure.higher_is_better
    return find_optimum(results, tune.candidates, None if higher else diverged, higher)


def _at(runs: Sequence[RunRecord], tune: Tuning, optimum: Optimum | None) -> tuple[RunRecord, ...]:
    """Return the confirmation runs at the best value."""
    value = optimum.value if optimum else tune.grid[0]
    return tuple(run for run in runs if not tune.is_tuning(run) and tune.value_of(run) == value)


def confirmed(study: Study, tuned: Tuned) -> Study:
    """Return the study with the cells of its design, each with the confirmation runs at its own best value.

    Planned runs that are neither tuning nor confirmation runs are dropped.
    """
    cells = {
        name: tuple(replace(run, cell=name, overrides=_own(run, tuned.tune)) for run in arm.confirmed)
        for name, arm in tuned.arms.items()
        if arm.confirmed
    }
    renamed = {run.id: run for runs in cells.values() for run in runs}
    wanted = tuned.confirmation
    runs = [run for run in study.runs if run.state != "planned" or run.id in wanted or tuned.tune.is_tuning(run)]
    return replace(study, runs=tuple(renamed.get(run.id, run) for run in runs), cells=cells)


def _own(run: RunRecord, tune: Tuning) -> dict[str, Any]:
    """Return the overrides of a run's features, without the tuned setting."""
    return {key: value for key, value in run.overrides.items() if key != tune.setting}


def with_equal(tuned: Tuned, measure: Measure, margin: float | None) -> Tuned:
    """Return the arms with the effects and verdicts at the baseline's best value, from the confirmation runs there."""
    usable = {name: tuple(run for run in arm.equal if run.usable) for name, arm in tuned.arms.items()}
    matched = budgets.match(usable, tuned.reference, budgets.tokens, final=True)
    found = compare(matched.comparable, tuned.reference)
    verdicts = {name: decide(effect, measure, margin, found.resolution) for name, effect in found.effects.items()}
    return replace(tuned, equal=found.effects, verdicts=verdicts)


def find_stages(study: Study) -> Stages:
    """Return which confirmation runs are due; all wait until the tuning runs have ended."""
    tune = study.tune
    if tune is None:
        return Stages()
    tuned = find_arms(study, tune)
    confirming = [run for run in study.runs if not tune.is_tuning(run) and run.state == "planned"]
    if not tuned.ended:
        most = sum(not tune.is_tuning(run) for run in tune.largest(study.runs))
        return Stages({run.id: "waits for the tuning runs to end" for run in confirming}, at_most=most)
    known = [arm for arm in tuned.arms.values() if arm.optimum]
    shared = tuned.arms[tuned.reference].optimum is not None
    wanted = {run.id for arm in known for run in (*arm.confirmed, *(arm.equal if shared else ()))}
    later = {run.id: "" if run.id in wanted else f"{NOT_NEEDED}: another value is best" for run in confirming}
    best = ", ".join(f"{arm.name} {arm.optimum.value:g}" for arm in known if arm.optimum)
    lines = [f"best {tune.setting}: {best}" if best else "no tuning run has a result"]
    return Stages(later, lines, lines)
