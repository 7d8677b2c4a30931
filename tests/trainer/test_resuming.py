"""A run that goes on with more steps equals one that had them from the start; on other data it does not go on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ablatrix.trainer import checkpoint
from ablatrix.trainer.config import TrainerConfig, optimization
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.events import read_events
from ablatrix.trainer.schedules import learning_rate
from tests.support.workspace import without_clock

WSD = {"trainer__schedule": "wsd", "trainer__decay_steps": 6, "trainer__warmup_steps": 2}
INFINITE = {"trainer__schedule": "infinite", "trainer__cooldown_steps": 5, "trainer__anneal_steps": 4}
Train = Callable[..., Path]


@pytest.mark.parametrize(
    ("settings", "steps", "origin"),
    [
        ({}, 20, 20),  # a row with an evaluation is due anyway
        ({}, 21, 21),  # a row is, and no evaluation
        pytest.param({}, 22, 22, marks=pytest.mark.thin),  # neither
        ({"trainer__schedule": "inverse_sqrt", "trainer__warmup_steps": 3}, 22, 22),
        (WSD, 22, 16),
        (INFINITE, 21, 17),
        ({"trainer__early_stop_patience": 1, "trainer__learning_rate": 1.0}, 22, None),
        ({"trainer__ckpt_interval": 0, "callbacks__jsonl": True}, 22, 22),
    ],
)
def test_more_steps(train: Train, settings: dict[str, Any], steps: int, origin: int | None) -> None:
    longer = without_clock(train("longer", trainer__max_iters=29, **settings))
    first = train("first", trainer__max_iters=steps, **settings)
    newest = checkpoint.checkpoints(first)[0]
    copy = shutil.copytree(first, first.with_name("copy"))
    train("first", trainer__max_iters=29, **settings)
    assert without_clock(first) == longer
    summary = json.loads((first / run_files.SUMMARY).read_text())
    assert summary["max_iters"] == 29
    resumed = [event for event in read_events(first) if event["event"] == "resumed"]
    assert [event["iter"] for event in resumed] == [origin or run_files.checkpoint_step(newest)]
    if settings.get("callbacks__jsonl"):
        steps_told = [json.loads(line)["iter"] for line in (first / run_files.METRICS).read_text().splitlines()]
        assert steps_told == [int(row[0]) for row in longer[1:]]
    named = copy / f"checkpoint-{origin or run_files.checkpoint_step(newest):08d}.pt"
    assert without_clock(train("named", trainer__max_iters=29, trainer__resume=named, **settings)) == longer


def test_a_schedule_that_depends_on_the_end(train: Train) -> None:
    folder = train(trainer__max_iters=12, trainer__schedule="cosine")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(
        UserError, match=r"trainer.max_iters: 12 there, 16 here\), and cannot continue: with schedule cos"
    ):
        train(trainer__max_iters=16, trainer__schedule="cosine")
    with pytest.raises(UserError, match=r"16 here, trainer.learning_rate: 0.01 there, 0.02 here\); choose"):
        train(trainer__max_iters=16, trainer__schedule="cosine", trainer__learning_rate=2e-2)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_further_evaluations_of_a_finished_run(train: Train) -> None:
    folder = train(model__positions="rope")
    rows = run_files.read_text(folder / run_files.LOSS)
    train(model__positions="rope", trainer__eval_blocks=16)
    assert "16" in json.loads((folder / run_files.SUMMARY).read_text())["val_nll_by_block"]
    assert run_files.read_text(folder / run_files.LOSS) == rows


@given(
    st.sampled_from(list(optimization.SCHEDULES)),
    st.integers(1, 40),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(1, 30),
)
def test_rates_up_to_the_steady_step_do_not_depend_on_the_end(
    name: str, steps: int, warmup: int, cooldown: int, last: int, more: int
) -> None:
    phases = {"wsd": {"decay_steps": last}, "infinite": {"cooldown_steps": cooldown, "anneal_steps": last}}
    common = {"schedule": name, "warmup_steps": warmup, **phases.get(name, {})}
    short, long = (TrainerConfig(**common, max_iters=n) for n in (steps, steps + more))
    assume(not list(optimization.find_problems(short)))
    steady = optimization.steady_until(short)
    for step in range(1, min(steady, steps) + 1):
        assert learning_rate(step, short) == learning_rate(step, long)
    if 0 < steady < steps and more > 1 and optimization.branch_step(short):
        assert learning_rate(steady + 1, short) != learning_rate(steady + 1, long) or last == 0


class TestOtherData:
    @pytest.fixture
    def own(self, tmp_path: Path, corpus: Path) -> Path:
        return Path(shutil.copy(corpus, tmp_path / "own.jsonl"))

    def stopped(self, train: Train, own: Path) -> Path:
        """A run with a checkpoint after 10 steps and no result."""
        folder = train(data__file_path=own, trainer__max_iters=12)
        for path in (folder / run_files.SUMMARY, folder / run_files.MODEL, folder / "checkpoint-00000012.pt"):
            path.unlink()
        return folder

    def test_appended(self, train: Train, own: Path) -> None:
        self.stopped(train, own)
        with own.open("a") as file:
            file.write(json.dumps({"text": "one more document, which was not there before"}) + "\n")
        with pytest.raises(UserError, match=r"checkpoint-00000010.pt: the content of data.file_path .* has changed"):
            train(data__file_path=own, trainer__max_iters=12)
        train(data__file_path=own, trainer__max_iters=12, trainer__resume="none")

    def test_same_length(self, train: Train, own: Path) -> None:
        self.stopped(train, own)
        own.write_text(own.read_text().replace("the ", "tha "))
        with pytest.raises(UserError, match="has changed since step 10 was trained"):
            train(data__file_path=own, trainer__max_iters=12)

    def test_copied_and_touched(self, train: Train, own: Path, corpus: Path) -> None:
        folder = self.stopped(train, own)
        os.utime(own, (1, 1))
        moved = shutil.copy(own, own.with_name("moved.jsonl"))
        own.unlink()
        train(data__file_path=moved, trainer__max_iters=12)
        assert [e["iter"] for e in read_events(folder) if e["event"] == "resumed"] == [10]

    def test_finished(self, train: Train, own: Path) -> None:
        folder = train(data__file_path=own)
        assert json.loads((folder / run_files.SUMMARY).read_text())["corpus_fingerprint"]
        train(data__file_path=own)
        own.write_text(own.read_text() * 2)
        with pytest.raises(UserError, match=r"data.file_path .*own.jsonl\) has changed since it finished"):
            train(data__file_path=own)

    def test_submitted(self, train: Train, own: Path, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / run_files.PROVENANCE).write_text(json.dumps({"corpus_fingerprint": "of another file"}))
        with pytest.raises(UserError, match="has changed since it was submitted"):
            train(data__file_path=own)
