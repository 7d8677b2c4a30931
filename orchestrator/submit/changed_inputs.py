"""Fingerprints of corpora and tokenizers, which prevent comparing results on different data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.terminal.printing import MOST_NAMES, list_names
from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.data import fingerprints
from ablatrix.trainer.rundir import recorded_inputs, run_files
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.study.matrix import Run


class Inputs:
    """Fingerprints of the files that runs read; each file is read once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, ...], dict[str, str]] = {}

    def of(self, config: object) -> dict[str, str]:
        """Return the fingerprints of a run's corpus and tokenizer; {} for a command, whose files are unknown."""
        if not isinstance(config, RunConfig):
            return {}
        data, start = config.data, str(config.model.init_from)
        key = (str(data.file_path), str(data.test_file), data.tokenizer, start, config.system.cache_dir)
        if key not in self._known:
            self._known[key] = fingerprints.of_inputs(config)
        return self._known[key]


def refuse_changed_inputs(runs: Iterable[Run], states: Iterable[RunState], again: Sequence[str]) -> None:
    """Raise UserError if a run of the study was trained, or is to be, on a different corpus or tokenizer.

    again: ids of runs to rerun, whose earlier results are set aside.
    """
    planned, inputs = {run.id: run for run in runs}, Inputs()
    affected: dict[str, list[str]] = {}
    for state in states:
        run = planned.get(state.run.id)
        if run is None or run.id in again or not (state.iter or state.active or state.state == "done"):
            continue
        changed = recorded_inputs.changed(_read_recorded(state.run.folder), inputs.of(run.cell_config))
        if changed and isinstance(run.config, RunConfig):
            names = [f"{name} ({attrgetter(name)(run.config)})" for name in changed]
            affected.setdefault(" and ".join(names), []).append(run.id)
    if affected:
        raise UserError("\n".join(_describe(names, ids) for names, ids in affected.items()))


def _describe(names: str, ids: Sequence[str]) -> str:
    rerun = " ".join(f"--rerun {run}" for run in ids) if len(ids) <= MOST_NAMES else "--rerun all"
    return (
        f"the content of {names} has changed since {count(len(ids), 'run')} of this study used it ({list_names(ids)}), "
        f"and results on different data cannot be compared; put the old file back, give the study another `name:`, or "
        f"train these again with {rerun}"
    )


def _read_recorded(folder: Path) -> dict[str, Any]:
    """Return the record in a run's folder that contains its input fingerprints, {} if there is none."""
    for name in (run_files.SUMMARY, run_files.PROVENANCE):
        record = run_files.read_json(folder / name) or {}
        if recorded_inputs.SETTINGS.keys() & record.keys():
            return record
    return {}
