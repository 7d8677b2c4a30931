"""The configuration of a run that starts a command: free-form settings, and the command they are filled into."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.study import command_flags, command_template, dotted
from ablatrix.orchestrator.study.command import CONFIG_FILE, SPEC
from ablatrix.orchestrator.study.command_flags import Flags
from ablatrix.orchestrator.study.command_settings import CommandKeys, Metrics
from ablatrix.orchestrator.study.command_template import are_labelled
from ablatrix.orchestrator.study.metric import COMMAND, Measure
from ablatrix.trainer.config.paths import expand_path
from ablatrix.trainer.rundir import run_files

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.slurm_settings import SlurmSettings

SETTINGS = "settings"  # in config.json


@dataclass(frozen=True)
class CommandConfig:
    """The resolved configuration of a run; see `run_config.Config`. settings: dotted key -> value."""

    settings: dict[str, Any]
    keys: CommandKeys
    seed: int = 0
    about: dict[str, str] = field(default_factory=dict)
    stop_after: int = 0  # the step at which a smoke test ends; 0: none
    parameters: None = None
    flops_per_token: None = None

    def fingerprint(self) -> str:
        """Hash the command with its values, but without its paths and names."""
        style = self.keys.flags.style
        passed = dotted.nest(self.settings) if style in ("config-file", "in-process") else None
        seed = self.seed if style == "in-process" else None  # otherwise it is in the command, or the command ignores it
        run = replace(self, settings={key: command_template.decisive(value) for key, value in self.settings.items()})
        values = run._values({name: f"{{{name}}}" for name in command_template.PLACES if name != "seed"})
        decisive = [run._render(self.keys.command or (), values), self._environment(values), self.keys.workdir]
        text = json.dumps([*decisive, passed, seed], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def fingerprint_by_seed(self) -> Callable[[int], str]:
        return lambda seed: self.with_seed(seed).fingerprint()

    def with_seed(self, seed: int) -> CommandConfig:
        return replace(self, seed=seed)

    def shortened(self, steps: int) -> CommandConfig:
        return replace(self, stop_after=steps)

    @property
    def steps(self) -> int | None:
        return _whole(self._number(self.keys.metrics.steps if self.keys.metrics else None))

    @property
    def tokens(self) -> int | None:
        per_step = self._number(self.keys.metrics.tokens_per_step if self.keys.metrics else None)
        return _whole(per_step * self.steps) if per_step and self.steps else None

    def files(self, places: Iterable[tuple[int, Path]], cell: str) -> Iterator[dict[str, str]]:
        settings = json.dumps(dotted.nest(self.settings), indent=1, ensure_ascii=False) + "\n"
        for seed, folder in places:
            run = self.with_seed(seed)
            spec = json.dumps(run.spec(folder.absolute(), cell), indent=1) + "\n"
            yield {SPEC: spec, CONFIG_FILE: settings, run_files.CONFIG: run.to_json()}

    def to_json(self) -> str:
        return json.dumps(self.as_tree(), indent=2) + "\n"

    def as_tree(self) -> dict[str, Any]:
        flags = self.keys.flags
        return {
            "command": list(self.keys.command or ()),
            "resume_command": list(self.keys.resume_command) if self.keys.resume_command else None,
            "flags": flags.style if flags == Flags(style=flags.style) else flags.model_dump(),
            "env": self.keys.env,
            "workdir": self.keys.workdir,
            "seed": self.seed,
            SETTINGS: dotted.nest(self.settings),
        }

    def flat(self, folder: Path | None = None) -> dict[str, Any]:
        rest = {key: value for key, value in self.as_tree().items() if key != SETTINGS}
        return dotted.flatten(rest) | {f"{SETTINGS}.{key}": value for key, value in self.settings.items()}

    def sharing_problems(self, slurm: SlurmSettings) -> list[str]:
        return []  # `command_checks` rejects several processes

    def spec(self, folder: Path, cell: str) -> dict[str, Any]:
        """Return what the job starts, with placeholders filled, and how it reads the metrics. folder: absolute."""
        places = {
            "run_dir": str(folder),
            "study_dir": str(folder.parent),
            "run_id": folder.name,
            "cell": cell,
            "config_file": str(folder / CONFIG_FILE),
            "python": sys.executable,
        }
        values = self._values(places)
        resume = self.keys.resume_command
        return {
            "command": self._render(self.keys.command or (), values),
            "resume_command": self._render(resume, values) if resume else None,
            "checkpoint": _placed(self.keys.checkpoint, values, folder) if self.keys.checkpoint else None,
            "env": self._environment(values),
            "workdir": os.path.abspath(expand_path(command_template.fill(self.keys.workdir, values))),
            # ablatrix_run in the script handles it
            "on_signal": "TERM" if self.keys.flags.style == "in-process" else self.keys.on_signal,
            "metrics": self._source(values, folder),
            "steps": self.steps,
            "tokens_per_step": self._number(self.keys.metrics.tokens_per_step if self.keys.metrics else None),
            "stop_after": self.stop_after,
            "seed": self.seed,
            "settings": self.settings,
            "fingerprint": self.fingerprint(),
            "config": self.to_json(),
        }

    def _values(self, places: dict[str, str]) -> dict[str, str]:
        settings = {
            key: command_flags.argument_text(value, self.keys.flags.style) for key, value in self.settings.items()
        }
        return settings | places | {"seed": str(self.seed)}

    def _render(self, words: Sequence[str], values: dict[str, str]) -> list[str]:
        in_env = {name for word in self.keys.env.values() for name in command_template.placeholders(word)}
        return command_template.render(words, values, self.settings, self.keys.flags, in_env)

    def _environment(self, values: dict[str, str]) -> dict[str, str]:
        return {name: command_template.fill(value, values) for name, value in self.keys.env.items()}

    def _source(self, values: dict[str, str], folder: Path) -> dict[str, Any]:
        metrics = self.keys.metrics or Metrics.model_construct()
        return {
            "kind": metrics.kind,
            "path": _placed(metrics.path, values, folder),
            "columns": metrics.source_columns,
            "patterns": metrics.regex or [],
            "labeled": are_labelled(self.keys.command or ()),
            "compare": metrics.compare,
        }

    @property
    def measure(self) -> Measure:
        return self.keys.metrics.measure if self.keys.metrics else COMMAND

    def _number(self, value: float | str | None) -> float | None:
        """Return a number from `metrics`, which may be a placeholder such as {max_iters}; None if unknown."""
        if not isinstance(value, str):
            return value
        try:
            return float(command_template.fill(value, self._values({})))
        except (ValueError, KeyError):
            return None


def _whole(value: float | None) -> int | None:
    return int(value) if value is not None and value >= 1 else None


def _placed(path: str, values: dict[str, str], folder: Path) -> str:
    """Return a path with its placeholders filled; a relative path is in the run's folder."""
    return str(folder / expand_path(command_template.fill(path, values)))
