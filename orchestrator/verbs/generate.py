"""The verb `generate`: generate text with the models of runs, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.terminal import tables
from ablatrix.orchestrator.verbs.export import require_own_trainer
from ablatrix.trainer.rundir.console import visible
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from ablatrix.orchestrator.store.study_dir import StudyRun
    from ablatrix.trainer.rundir.text_request import Request


def generate(run: str, cells: Sequence[str], study: str | None, output: Path, request: Request) -> dict[str, str]:
    """Return `ID after step N` -> generated text, for a run and one run of each of these cells of its study.

    A cell's run with the same seed is preferred.
    """
    if request.temperature <= 0:
        raise UserError(f"--temperature {request.temperature:g}: must be positive; near 0 the likeliest token is drawn")
    chosen = study_dir.find_run(run, study, output)
    runs = [chosen, *_find_others(chosen, cells)]
    for one in runs:
        require_own_trainer(one)
    from ablatrix.trainer import generation  # torch takes seconds to import

    found = [(one.id, generation.generate(one.folder, request)) for one in runs]
    return {f"{name} after step {step}": text for name, (text, step) in found}


def _find_others(run: StudyRun, cells: Sequence[str]) -> list[StudyRun]:
    """Return one run of each cell in the study of `run`, with the same seed if possible."""
    if not cells:
        return []
    study = study_dir.find_study(str(run.folder.parent))
    seed = next((known.seed for known in study.runs if known.id == run.folder.name), run.seed)
    return [min(study.matching(cell), key=lambda other: (other.seed != seed, other.seed)) for cell in cells]


def print_texts(texts: dict[str, str], console: Console) -> None:
    """Print texts side by side on a terminal that is wide enough, else one below the other."""
    fits = len(texts) * (tables.WRAPPED_WIDTH + 3) < console.width
    if console.is_terminal and len(texts) > 1 and fits:
        names = list(texts)
        tables.print_table("generated text", [texts], console, tables.Layout(columns=names, wrapped=names))
        return
    console.file.write("\n\n".join(f"--- {name}\n{visible(text)}" for name, text in texts.items()) + "\n")
