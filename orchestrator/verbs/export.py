"""The verb `export`: write a run's weights for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.store import run_facts, study_dir
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.store.study_dir import StudyRun


def export(run: str, target: Path, study: str | None, output: Path, *, form: str) -> str:
    """Write the weights of a run into a new folder; return a one-line description of its content."""
    chosen = study_dir.find_run(run, study, output)
    require_own_trainer(chosen)
    from ablatrix.trainer import export  # torch takes seconds to import

    return export.export(chosen.folder, target, form)


def require_own_trainer(run: StudyRun) -> None:
    """Raise UserError for a run of a user's command, whose weights are in its own format."""
    if run_facts.is_command(run.folder):
        raise UserError(f"{run.id} is a run of your own command, which keeps its weights itself; see {run.folder}")
