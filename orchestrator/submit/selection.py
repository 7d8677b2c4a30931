"""The selection of runs that a submit queues, reuses, leaves alone, or sets aside."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ablatrix.orchestrator.study.run_order import in_queue_order
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.files import require_folder

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.store.study_dir import Study, StudyRun


@dataclass
class Selection:
    """The runs that a submit queues, and those that it leaves alone, by reason."""

    chosen: list[RunState] = field(default_factory=list)
    done: list[RunState] = field(default_factory=list)
    active: list[RunState] = field(default_factory=list)
    failed: list[RunState] = field(default_factory=list)
    held: list[RunState] = field(default_factory=list)  # runs of a later stage
    all_active: list[RunState] = field(default_factory=list)  # all active runs, whether requested or not

    def describe(self) -> list[str]:
        """Return a line for each group of runs that says what will be done with it."""
        groups = (
            (self.failed, "failed, lost or cancelled; --retry reruns them"),
            (self.done, "done already, results reused"),
            (self.active, "queued or running already"),
            (self.held, "waiting for other results, or not needed"),
            (self.chosen, "to run"),
        )
        return [f"{len(states)} {text}" for states, text in groups if states]


def select(
    states: Iterable[RunState],
    retry: bool = False,
    cells: Sequence[str] = (),
    rerun: Sequence[str] = (),
    *,
    study: str = "",
    held: Collection[str] = (),
) -> Selection:
    """Choose planned and stopped runs; with `retry` also failed, lost and cancelled ones, and done ones missing files.

    cells: only these cells (or run ids). rerun: ids of runs to queue whatever their state. study: its name, on
    which the queue order depends. held: ids of runs of a later stage, which are not queued now.
    """
    selection = Selection()
    for state in states:
        if state.active:
            selection.all_active.append(state)
        if cells and state.run.cell not in cells and state.run.id not in cells:
            continue
        if state.active:
            selection.active.append(state)
        elif state.state == "done" and state.run.id not in rerun and not (retry and state.incomplete):
            selection.done.append(state)
        elif state.run.id in held and state.run.id not in rerun:
            selection.held.append(state)
        elif state.state in ("failed", "lost", "cancelled") and not retry and state.run.id not in rerun:
            selection.failed.append(state)
        else:
            selection.chosen.append(state)
    selection.chosen = in_queue_order(selection.chosen, study, lambda state: state.run)
    return selection


def find_runs(study: Study, names: Sequence[str]) -> list[StudyRun]:
    """Return the runs that `--rerun` names: ids, beginnings of ids, cells with one run, or `all`. Raises UserError."""
    return list(study.runs) if "all" in names else [study.find(name) for name in names]


def put_aside(runs: Collection[StudyRun], states: Iterable[RunState]) -> None:
    """Move the results of these runs to <run>.old-<n>. Raises RunError, before moving any, if a run is active."""
    active = {state.run.id for state in states if state.active}
    for run in runs:
        if run.id in active:
            raise RunError(f"{run.id} is queued or running; cancel it first")
    for run in runs:
        number = next(n for n in range(1, 10**6) if not os.path.lexists(f"{run.folder}.old-{n}"))
        try:
            require_folder(run.folder)
            run.folder.rename(f"{run.folder}.old-{number}")
        except OSError as error:
            raise RunError(f"cannot set {run.folder} aside: {error.strerror}") from None
