"""Decide what a study that runs in stages does next, from the results of its runs so far.

A study's folder contains every run that it may ever need. The rules here decide which of them are queued now; they
depend only on the files, so every submit and every job reaches the same decision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report.stages import Stages, merge
from ablatrix.orchestrator.status import run_state

if TYPE_CHECKING:
    from ablatrix.orchestrator.report import collect
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.store.study_dir import Study

Rule = Callable[["collect.Study"], Stages]


def find_stages(study: Study, states: Sequence[RunState]) -> Stages:
    """Return the current stages of a study; for a study without stages, nothing is read."""
    rules = _rules(study)
    if not rules:
        return Stages()
    from ablatrix.orchestrator.report.collect import of_study

    found = of_study(study, run_state.reasons(states))
    return merge(rule(found) for rule in rules)


def with_reasons(states: Sequence[RunState], stages: Stages) -> list[RunState]:
    """Return the states, with the reason why a run's stage holds it back."""
    held = stages.held
    return [replace(s, reason=held[s.run.id]) if not s.reason and s.run.id in held else s for s in states]


def has_stages(study: Study) -> bool:
    """True if what runs next may depend on results."""
    return bool(_rules(study))


def _rules(study: Study) -> list[Rule]:
    """Return the rules that apply to a study. Imported when used: they need numpy and scipy."""
    rules: list[Rule] = []
    if study.looks is not None:
        from ablatrix.orchestrator.report.looks import find_stages as by_looks

        rules.append(by_looks)
    if study.tune is not None:
        from ablatrix.orchestrator.report.tuned import find_stages as by_tuning

        rules.append(by_tuning)
    if study.scale.get("stop_if"):
        from ablatrix.orchestrator.report.gate import find_stages as by_gate

        rules.append(by_gate)
    return rules
