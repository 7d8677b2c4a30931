"""A plan as a tree (study, cells, what each changes, seeds) and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.text import Text
from rich.tree import Tree

from ablatrix.orchestrator.status import cost
from ablatrix.orchestrator.study import run_config, value_origins
from ablatrix.orchestrator.study.experiment import Loaded
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.orchestrator.terminal.tables import known
from ablatrix.trainer.config.field_errors import spell


def tree(loaded: Loaded, runs: Sequence[Run], folder: Path) -> Tree:
    """The study, its cells, what each changes and where that is said, its seeds with their folders."""
    root = Tree(Text(f"{loaded.experiment.name}: {len(runs)} runs in {folder}/, from {loaded.file}"))
    for cell, members in groupby(runs, key=lambda run: run.cell):
        group = list(members)
        first = group[0]
        size = run_config.parameters(first.config)
        branch = root.add(Text(f"{cell} (parameters: {known(size, ',')})"))
        set_by = value_origins.of_run(loaded, first.features, first.config)
        for key, value in first.overrides.items():
            branch.add(Text(f"{key}: {spell(value)}  ({value_origins.setter(set_by, key)})"))
        if not first.overrides:
            branch.add(Text("the base as it is"))
        seeds = branch.add(Text("seeds"))
        for run in group:
            seeds.add(Text(f"{run.seed}: {run.id}"))
    return root


def as_json(runs: Sequence[Run], folder: Path, launcher: str) -> dict[str, Any]:
    """Everything about each run, its whole configuration included."""
    return {
        "folder": str(folder),
        "launcher": launcher,
        "runs": [
            {
                "id": run.id,
                "cell": run.cell,
                "seed": run.seed,
                "features": list(run.features),
                "overrides": run.overrides,
                "parameters": run_config.parameters(run.config),
                "flops_per_token": run_config.flops_per_token(run.config),
                "tokens": cost.tokens(run),
                "config": run_config.as_tree(run.config),
            }
            for run in runs
        ],
    }
