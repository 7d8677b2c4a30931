"""Contradictions between the files of a study: results that were edited, lost or mixed up afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.rundir.console import count

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.collect import RunRecord, Study

PATHS = (("data", "file_path"), ("data", "test_file"), ("data", "tokenizer"), ("model", "init_from"))


def find_contradictions(study: Study) -> list[str]:
    """Return one line per contradiction between study.json, config.json, summary.json and loss.csv."""
    found = [f"{run.id}: {problem}" for run in study.runs for problem in _of_run(run)]
    return [*found, *_changed_configs(study), *_lost_runs(study)]


def _of_run(run: RunRecord) -> Iterator[str]:
    if run.altered:
        yield run.altered
    if not run.config and run.finished:
        yield "config.json is missing or corrupt"
    if run.wrong_overrides:
        yield f"config.json lacks settings that study.json has for the cell: {', '.join(run.wrong_overrides)}"
    seed = run.setting("system.seed")
    if seed is not None and seed != run.seed:
        yield f"config.json has seed {seed}, study.json {run.seed}"
    final, evaluations = run.number("val_nll"), run.curve.held_out["val_loss"]
    if final is not None and len(evaluations) and not any(math.isclose(final, v, rel_tol=1e-9) for v in evaluations):
        yield f"val_nll of summary.json ({final:.6g}) is not an evaluation in loss.csv"


def _changed_configs(study: Study) -> list[str]:
    """Return the configurations that do not match the hash in their run's name.

    If none matches, the hashes come from a different version and cannot be recomputed here.
    """
    hashes = {run.id: found for run in study.runs if (found := _hash(run))}
    wrong = [run for run, found in hashes.items() if not run.endswith(f"-{found}")]
    same = len(wrong) == len(hashes)
    return [] if same else [f"{run}: config.json differs from the settings that the run was made with" for run in wrong]


def _hash(run: RunRecord) -> str:
    """Return the hash of a configuration; '' for a command, or if its paths cannot be restored to how they were.

    Paths inside the working folder are hashed relative to it, wherever it was.
    """
    if run.command or not run.config:
        return ""
    place, here = f"{run.provenance.get('working_folder')}/", f"{Path.cwd()}/"
    config = {name: dict(part) if isinstance(part, dict) else part for name, part in run.config.items()}
    for section, name in PATHS:
        value = config.get(section, {}).get(name)
        spelled = [str(path).removeprefix(place) for path in (value if isinstance(value, list) else [value])]
        if any(path.startswith(here) for path in spelled):
            return ""
        if value is not None:
            config[section][name] = spelled if isinstance(value, list) else spelled[0]
    return _fingerprint(config)


def _fingerprint(config: dict[str, Any]) -> str:
    try:
        return RunConfig.model_validate(config).fingerprint()
    except (ValidationError, ValueError):
        return ""


def _lost_runs(study: Study) -> list[str]:
    """Return the cells and seeds that the last submission planned and study.json lacks."""
    if not study.plans:
        return []
    there = {(run.cell, run.seed) for run in study.runs}
    seeds = {seed for _, seed in there}
    planned, counts = study.plans[-1], {cell: len(runs) for cell, runs in study.cells.items()}
    most = max(counts.values(), default=0)
    lost = [f"{cell} was planned but is not in study.json" for cell in planned.cells if cell not in study.cells]
    lost += [f"seed {seed} was planned but is not in study.json" for seed in planned.seeds if seed not in seeds]
    if study.tune is None and "aa" not in study.design:
        lost += [f"{cell} has {count(n, 'run')} in study.json, others {most}" for cell, n in counts.items() if n < most]
    return lost
