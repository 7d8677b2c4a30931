"""Runs of small experiments, expanded from text."""

from pathlib import Path

import pytest

from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.trainer.rundir.errors import ConfigError, UserError

FIVE = """\
features:
  swiglu: {model.swiglu: true}
  rmsnorm: {model.rmsnorm: true}
  rope: {model.rope: true}
  warmup: {trainer.warmup_steps: 10}
  cosine: {trainer.use_cosine: true}
"""


def write_experiment(folder: Path, text: str) -> Path:
    path = folder / "e.yaml"
    path.write_text(HEAD + text)
    return path


def expand(folder: Path, text: str, sets: tuple[str, ...] = ()) -> list[Run]:
    return matrix.runs(load_experiment(write_experiment(folder, text), sets), lambda config: (4096, 4095))


def refusals(folder: Path, text: str) -> list[str]:
    """Return the error lines for an invalid experiment; `text` begins at line 3 of its file."""
    with pytest.raises((ConfigError, UserError)) as caught:
        expand(folder, text)
    return str(caught.value).splitlines()


HEAD = "name: s\nbase: {data.file_path: x.jsonl, model.model_type: gpt-nano}\n"
