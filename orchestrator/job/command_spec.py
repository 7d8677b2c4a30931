"""command.json of a run: the command that a job starts, and how its metrics are read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.study.command import SPEC
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import RunError


@dataclass(frozen=True)
class CommandSpec:
    """The record written by study/command_config.py, with all placeholders filled in."""

    command: list[str]
    resume_command: list[str] | None
    checkpoint: str | None
    env: dict[str, str]
    workdir: str
    on_signal: str  # signal on which the command saves its state: TERM, INT ..., or none
    metrics: dict[str, Any]  # the source of its numbers
    steps: int | None
    tokens_per_step: float | None
    stop_after: int | None  # steps, in a smoke test
    seed: int
    fingerprint: str
    config: str  # content of config.json

    @property
    def saves_state(self) -> bool:
        """True if the command saves its state when it receives `on_signal`."""
        return self.on_signal != "none"


def read(run_dir: Path) -> CommandSpec:
    """Return the record in a run's folder. Raises RunError if it is missing or corrupt."""
    record = run_files.read_json(run_dir / SPEC) or {}
    names = [field.name for field in dataclasses.fields(CommandSpec)]
    if not isinstance(record.get("command"), list) or not set(names) <= record.keys():
        raise RunError(f"{run_dir / SPEC}: missing or corrupt; submit the experiment again")
    return CommandSpec(**{name: record[name] for name in names})
