"""Finished studies with tuned arms, written to disk, with losses that are parabolas in the learning rate."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ablatrix.orchestrator.study.tuning import Tuning, arm_of
from tests.support.studies import FEATURES, Plan, write_study

SETTING = "trainer.learning_rate"
TUNE = Tuning(SETTING, (1e-3, 2e-3, 4e-3), (1001, 1002))
CURVATURE = 0.05  # nats added at half or twice the best learning rate


def write_tuned(
    folder: Path,
    best: Mapping[str, float],
    effects: Mapping[str, float],
    *,
    trained: Sequence[str] = (),
    fates: Mapping[tuple[str, int], str] | None = None,
) -> dict[str, tuple[str, str]]:
    """Write a tuned study of the baseline and the features in `best`; return the states for `build`.

    best: arm -> its best learning rate; effects: arm -> nats at that rate; trained: cells whose confirmation runs have
    finished, such as `cosine@0.002`; fates: (cell, seed) -> fate of the run.
    """
    values = {f"{value:g}": value for value in TUNE.candidates}
    features = {name: FEATURES[name] for name in best if name != "baseline"}
    cells, extra, known = {}, {}, dict(fates or {})
    for arm, rate in best.items():
        for label, value in values.items():
            name = f"{arm}@{label}"
            cells[name] = [*([arm] if arm != "baseline" else []), label]
            extra[name] = effects.get(arm, 0.0) + CURVATURE * math.log2(value / rate) ** 2
            for seed in (1, 2, 3):
                known.setdefault((name, seed), "done" if name in trained else "planned")
            for seed in TUNE.seeds:
                known.setdefault((name, seed), "done" if value in TUNE.grid else "planned")
    plan = Plan(
        seeds=(*TUNE.seeds, 1, 2, 3),
        features={**features, **{label: {SETTING: value} for label, value in values.items()}},
        cells=cells,
        extra=extra,
        noise=0.002,
        fates=known,
    )
    states = write_study(folder, plan)
    record = json.loads((folder / "study.json").read_text())
    record["tune"] = dataclasses.asdict(TUNE)
    record["features"] = features
    record["runs"] = [
        {**run, "features": [name for name in run["features"] if name == arm_of(run["cell"])]}
        for run in record["runs"]
        if run["seed"] not in TUNE.seeds or run["overrides"][SETTING] in TUNE.grid
    ]
    (folder / "study.json").write_text(json.dumps(record))
    return {run["id"]: states[run["id"]] for run in record["runs"]}
