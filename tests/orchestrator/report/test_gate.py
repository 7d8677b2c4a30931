"""The gate of a scale axis: which runs are due when the smaller sizes have ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ablatrix.orchestrator.report import collect, gate
from ablatrix.orchestrator.report.collect import Study
from ablatrix.orchestrator.report.looks import analyze
from ablatrix.orchestrator.report.stages import Stages
from tests.support.studies import Plan, write_sizes

CELLS = {"baseline": [], "swiglu": ["swiglu"], "cosine": ["cosine"]}
HURTS = "not needed: cosine hurts at gpt-nano"
SIZES = ("gpt-nano", "gpt-micro", "gpt-mini")
FEATURES = {"swiglu": {"model.swiglu": True}, "cosine": {"trainer.use_cosine": True}}


def study(folder: Path, fates: dict[str, str], effects: dict[str, float]) -> Study:
    """A study whose sizes have these fates: done, running, planned."""
    plans = {}
    for size in SIZES:
        each = {(cell, seed): fates[size] for cell in CELLS for seed in (1, 2, 3)}
        plans[size] = Plan(features=FEATURES, cells=CELLS, effects=effects, noise=0.003, fates=each)
    return replace(collect.read_study(folder, write_sizes(folder, plans)), stop_if="hurts")


def words(stages: Stages, size: str) -> dict[str, str]:
    """Return cell -> what the gate says of its runs at a size; each cell has one answer."""
    found = {(name.partition("@")[0], why) for name, why in stages.later.items() if f"@{size}-" in name}
    assert len({cell for cell, _ in found}) == len(found)
    return dict(found)


def test_larger_sizes_wait_for_the_smaller_ones(tmp_path: Path) -> None:
    fates = {"gpt-nano": "running", "gpt-micro": "planned", "gpt-mini": "planned"}
    stages = gate.find_stages(study(tmp_path / "s", fates, {"cosine": 0.1}))
    assert words(stages, "gpt-nano") == {}
    assert words(stages, "gpt-micro") == dict.fromkeys(CELLS, "waits for the runs at gpt-nano to end")
    assert words(stages, "gpt-mini") == dict.fromkeys(CELLS, "waits for the runs at gpt-nano to end")
    assert len(stages.waiting) == 18


def test_a_cell_that_hurts_is_left_out_of_all_larger_sizes(tmp_path: Path) -> None:
    fates = {"gpt-nano": "done", "gpt-micro": "planned", "gpt-mini": "planned"}
    known = study(tmp_path / "s", fates, {"cosine": 0.1, "swiglu": -0.1})
    stages = gate.find_stages(known)
    assert words(stages, "gpt-micro") == {
        "baseline": "",
        "swiglu": "",
        "cosine": HURTS,
    }
    assert words(stages, "gpt-mini") == {
        "baseline": "waits for the runs at gpt-micro to end",
        "swiglu": "waits for the runs at gpt-micro to end",
        "cosine": HURTS,
    }
    assert stages.lines == ["gpt-nano has ended: cosine stopped (hurts)"]
    shown = analyze(known)
    assert list(shown.by_size["gpt-micro"].cells) == ["baseline", "swiglu"]
    assert list(shown.by_size["gpt-nano"].cells) == list(CELLS)


def test_nothing_is_queued_when_every_cell_hurts(tmp_path: Path) -> None:
    fates = {"gpt-nano": "done", "gpt-micro": "planned", "gpt-mini": "planned"}
    stages = gate.find_stages(study(tmp_path / "s", fates, {"cosine": 0.1, "swiglu": 0.1}))
    assert not stages.due
    assert not stages.waiting
    assert words(stages, "gpt-micro")["baseline"] == "not needed: every cell hurts at a smaller size"


@pytest.mark.parametrize("fate", ["done", "failed"])
def test_a_run_that_failed_does_not_block_the_next_size(tmp_path: Path, fate: str) -> None:
    fates = {"gpt-nano": "done", "gpt-micro": fate, "gpt-mini": "planned"}
    stages = gate.find_stages(study(tmp_path / "s", fates, {}))
    assert set(words(stages, "gpt-mini").values()) == {""}


def test_without_the_gate_all_sizes_are_queued_at_once(tmp_path: Path) -> None:
    fates = {"gpt-nano": "planned", "gpt-micro": "planned", "gpt-mini": "planned"}
    assert gate.find_stages(replace(study(tmp_path / "s", fates, {}), stop_if=None)) == Stages()
