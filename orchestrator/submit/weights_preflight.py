"""Preflight of `model.init_from`: the weights exist and fit the model of every cell."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ablatrix.orchestrator.study import value_origins
from ablatrix.orchestrator.study.matrix import first_of_cells
from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.program import run_module

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.experiment import Loaded
    from ablatrix.orchestrator.study.matrix import Run


def check_weights(loaded: Loaded, runs: Sequence[Run]) -> Iterator[str]:
    """Yield why cells cannot start from the weights they name; a separate process with torch compares the shapes."""
    cells = first_of_cells(runs).values()
    first = [run for run in cells if isinstance(run.config, RunConfig) and run.config.model.init_from]
    if not first:
        return
    text = json.dumps([run.config.as_tree() for run in first])
    try:
        found = json.loads(run_module("ablatrix.trainer.initial_weights", text=text))
    except RunError as error:
        yield f"model.init_from: the weights cannot be checked: {error}"
        return
    for run, problems in zip(first, found, strict=True):
        for problem in problems:
            key = problem.partition(":")[0]
            at = value_origins.position(loaded, run.features, key if key.startswith("model.") else "model.init_from")
            yield f"{at}cell {run.cell}: {problem}"
