"""Callbacks seen from the experiment file: what submit checks of them before anything is queued."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.experiment import Loaded
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.orchestrator.submit import data_preflight, preflight
from ablatrix.trainer.effect_check import signature
from tests.support.workspace import Workspace


def planned(workspace: Workspace) -> tuple[Loaded, list[Run]]:
    loaded = load_experiment(workspace.write_study(), ["design=[baseline]"])
    return loaded, matrix.runs(loaded, preflight.vocabulary)


def test_missing_callback_is_found_before_it_is_queued(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    loaded, runs = planned(workspace)
    own = runs[0].config.callbacks.model_copy(update={"custom": ("no_such_package.callbacks:Mine",)})
    changed = [replace(run, cell_config=run.config.model_copy(update={"callbacks": own})) for run in runs]
    assert list(data_preflight.check_inputs(loaded, changed)) == [
        "callbacks.custom: no_such_package.callbacks:Mine: there is no module no_such_package; put its folder on "
        "PYTHONPATH, or start in the folder that contains no_such_package"
    ]
    (workspace.folder / "no_such_package").mkdir()
    assert not list(data_preflight.check_inputs(loaded, changed)) and not list(
        data_preflight.check_inputs(loaded, runs)
    )


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        ({"trainer": {"early_stop_patience": 3}}, True),
        ({"callbacks": {"custom": ["a:B"]}}, True),
        ({"trainer": {"early_stop_min_delta": 0.1}}, False),
        ({"trainer": {"save_best": True}, "callbacks": {"jsonl": True}}, False),
    ],
)
def test_the_probe_sees_what_decides_the_end(workspace: Workspace, settings: dict[str, Any], differs: bool) -> None:
    plain = planned(workspace)[1][0].config.model_dump(mode="json")
    changed = {name: {**section, **settings.get(name, {})} for name, section in plain.items()}
    assert (signature(changed) != signature(plain)) is differs
