"""kill -9 of runs with everything switched on: all their files come out as those of an undisturbed run."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ablatrix.trainer.rundir import loss_csv, run_files
from tests.faults.conftest import Trainers, same_result
from tests.faults.seccomp import Fault
from tests.support.overfitting import OVERFITTING
from tests.support.rows import rows_of

pytestmark = pytest.mark.slow

CLOCKS = {*loss_csv.CLOCK_COLUMNS, "peak_memory_bytes"}
EVERYTHING: dict[str, Any] = {
    "callbacks__jsonl": True,
    "trainer__sample_interval": 20,
    "trainer__sample_prompt": ["The", "It"],
    "trainer__save_best": True,
    "trainer__save_total_limit": 3,
    "trainer__early_stop_patience": 2,
    "trainer__learning_rate": 0.03,
    "trainer__max_iters": 80,
    "trainer__eval_interval": 4,
    "trainer__log_interval": 4,
    "trainer__ckpt_interval": 6,
    "trainer__eval_tokens": 128,
    "data__test_size": 4,
    "model__n_head": 1,
}


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = (run / run_files.METRICS).read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCKS} for line in lines]


def weights_of(run: Path) -> list[torch.Tensor]:
    return list(torch.load(run / run_files.BEST, weights_only=True).values())


@pytest.mark.usefixtures("seccomp")
def test_killed_before_calls_from_first_to_last(trainers: Trainers, write_jsonl: Callable[..., Path]) -> None:
    """Twice each, the second time in a run that goes on from what the first has left."""
    settings = {**EVERYTHING, "data__file_path": write_jsonl(OVERFITTING)}
    undisturbed = trainers.finish("undisturbed", **settings)
    found = json.loads((undisturbed / run_files.SUMMARY).read_text())
    assert found["stopped_early"] and 0 < found["best_iter"] < found["iters"] < 80
    calls = trainers.watched("counted", Fault(changing=True), **settings).calls
    expected = list(rows_of(undisturbed))
    for at in range(1, len(calls), max(1, len(calls) // 4)):
        run = trainers.folder / f"run{at}"
        for fault in (Fault("kill", at, changing=True), Fault("kill", at // 2 + 1, changing=True)):
            assert trainers.watched(run.name, fault, **settings).code in (0, -signal.SIGKILL)
            text = run_files.read_text(run / run_files.METRICS)
            steps = [record["iter"] for record in run_files.json_objects(text[: text.rfind("\n") + 1])]
            assert steps == expected[: len(steps)], "a row is doubled, missing or out of order"
        trainers.finish(run.name, **settings)
        assert same_result(run, undisturbed)
        assert metrics(run) == metrics(undisturbed)
        assert (run / run_files.SAMPLES).read_bytes() == (undisturbed / run_files.SAMPLES).read_bytes()
        assert all(map(torch.equal, weights_of(run), weights_of(undisturbed)))
        assert not list(run.glob(".*.tmp"))
