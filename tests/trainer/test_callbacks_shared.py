"""Callbacks of a run that several processes share: what needs all of them is done by all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import read_events
from tests.support.overfitting import OVERFITTING, held_out
from tests.support.ranks import ended, flags, ranks
from tests.support.workspace import without_clock

pytestmark = pytest.mark.slow

OWN = """
class Asks:
    def on_batch_end(self, trainer):
        trainer.save_requested = trainer.iter == 6
"""


def test_best_weights_early_stop_and_a_request_of_one_process(
    write_jsonl: Callable[..., Path], offline_cache: Path, tmp_path: Path
) -> None:
    corpus = write_jsonl(OVERFITTING)
    (tmp_path / "asks.py").write_text(OWN)
    settings: dict[str, Any] = {
        "data.test_size": 4, "data.block_size": 8, "model.model_type": None, "model.n_layer": 1, "model.n_head": 1,
        "model.n_embd": 8, "trainer.batch_size": 2, "trainer.learning_rate": 0.03, "trainer.eval_interval": 4,
        "trainer.eval_tokens": 128, "trainer.save_best": True, "trainer.early_stop_patience": 2,
        "callbacks.custom": "asks:Asks", "trainer.save_total_limit": 9,
    }  # fmt: skip
    found = {}
    for name, count, strategy in (("alone", 1, "single"), ("shared", 2, "fsdp")):
        words = flags(corpus, offline_cache, tmp_path / name, **settings, **{"trainer.strategy": strategy})
        ended(ranks(words, count, cwd=tmp_path), [0] * count)
        found[name] = json.loads((tmp_path / name / run_files.SUMMARY).read_text())
    assert found["alone"]["stopped_early"] and 0 < found["alone"]["best_iter"] < found["alone"]["iters"] < 60
    for key in ("stopped_early", "iters", "best_iter"):
        assert found["alone"][key] == found["shared"][key]
    assert len(without_clock(tmp_path / "shared")) == len(without_clock(tmp_path / "alone"))
    steps = [event["iter"] for event in read_events(tmp_path / "shared") if event["event"] == "checkpoint"]
    assert steps == [6, *(step for step in (20, 40) if step < found["shared"]["iters"]), found["shared"]["iters"]]
    for name, summary in found.items():
        assert held_out(tmp_path / name, run_files.BEST) == pytest.approx(summary["best_val_nll"], abs=1e-5)
    assert found["shared"]["best_val_nll"] == pytest.approx(found["alone"]["best_val_nll"], abs=1e-3)
