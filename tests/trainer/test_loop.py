"""The loop in this process, on data that a small model can learn."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from ablatrix.trainer.config import optimization
from ablatrix.trainer.loop import Trainer, step_seed
from ablatrix.trainer.schedules import learning_rate
from tests.support.callbacks import at
from tests.support.tiny_training import BLOCK, config, heldout, rows, source, trainer


def test_rows_are_where_they_are_due() -> None:
    run = trainer(max_iters=25, log_interval=10, eval_interval=12)
    got = rows(run)
    run.run()
    assert [r["iter"] for r in got] == [1, 10, 12, 20, 24, 25]
    assert [r["iter"] for r in got if r["val_loss"] is not None] == [12, 24, 25]
    assert [r["tokens"] for r in got] == [r["iter"] * 4 * BLOCK for r in got]
    assert [r["lr"] for r in got] == [learning_rate(r["iter"], run.config.trainer) for r in got]


def test_a_row_is_the_mean_since_the_row_before() -> None:
    every, tenth = trainer(log_interval=1), trainer(log_interval=10)
    fine, coarse = rows(every), rows(tenth)
    every.run()
    tenth.run()
    bounds = [(0, 1), (1, 10), (10, 20), (20, 25)]
    for row, (a, b) in zip(coarse, bounds, strict=True):
        assert row["loss"] == pytest.approx(np.mean([r["loss"] for r in fine[a:b]]), rel=1e-9)
        assert row["grad_norm"] == pytest.approx(np.mean([r["grad_norm"] for r in fine[a:b]]), rel=1e-9)


def test_evaluation_is_the_mean_over_scored_tokens() -> None:
    run = trainer()
    x, y = (torch.from_numpy(a) for a in heldout())
    run.model.eval()
    log_p = run.model(x)[0].log_softmax(-1)
    run.model.train()
    terms = [-log_p[b, t, y[b, t]].item() for b in range(7) for t in range(BLOCK) if y[b, t] != -1]
    assert len(terms) == 7 * BLOCK - 3
    assert run.evaluate() == pytest.approx(sum(terms) / len(terms), abs=1e-5)
    assert run.window_nll is not None and run.window_nll.shape == (7,)
    assert run.window_nll[-1] == pytest.approx(sum(terms[6 * BLOCK :]), abs=1e-5)
    assert run.evaluate() == run.window_nll.sum() / len(terms)


def test_nothing_held_out() -> None:
    empty = np.zeros((0, BLOCK), dtype=np.int64)
    run = Trainer(config(max_iters=3), source, (empty, empty))
    got = rows(run)
    run.run()
    assert got[-1]["val_loss"] is None and run.finished


def test_evaluating_changes_nothing() -> None:
    often, never = trainer(eval_interval=1, log_interval=1), trainer(log_interval=1)
    a, b = rows(often), rows(never)
    often.run()
    never.run()
    assert [r["loss"] for r in a] == [r["loss"] for r in b]


OPTIMIZERS = {"adamw": 1e-2, "sgd": 0.3, "muon": 1e-2, "adafactor": 0.1}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns(name: str) -> None:
    run = trainer(
        max_iters=100, optimizer=name, learning_rate=OPTIMIZERS[name], schedule="linear", weight_decay=0.0,
        model={"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    )  # fmt: skip
    run.run()
    assert run.final_loss < 0.3 < 2.5 < run.initial_loss


@pytest.mark.parametrize(
    ("cut", "optimizer", "schedule"),
    [
        *((cut, "adamw", "cosine") for cut in (1, 4, 10, 13, 24)),
        (13, "sgd", "linear"),
        (1, "muon", "wsd"),
        (13, "muon", "inverse_sqrt"),
        (1, "adafactor", "constant"),
        (22, "adafactor", "infinite"),
    ],
)
@pytest.mark.slow
def test_stopped_and_continued_equals_undisturbed(cut: int, optimizer: str, schedule: str) -> None:
    settings = {"eval_interval": 6, "optimizer": optimizer, "schedule": schedule}
    whole = trainer(**settings)
    expected = rows(whole)
    whole.run()

    first = trainer(**settings)
    saved: list[dict[str, Any]] = []

    def stop(t: Trainer) -> None:
        t.stop_requested = t.iter == cut

    first.add_callback(at("on_batch_end", stop))
    first.add_callback(at("on_checkpoint", lambda t: saved.append(copy.deepcopy(t.state()))))
    before = rows(first)
    first.run()
    branch = optimization.branch_step(first.config.trainer)  # saved for runs with more steps
    assert first.iter == cut and not first.finished and [s["step"] for s in saved if s["step"] != branch] == [cut]

    torch.manual_seed(12345)  # another process has another generator state
    second = trainer(**settings)
    second.load_state(saved[-1])
    after = rows(second)
    second.run()
    assert before + after == expected
    assert second.initial_loss == whole.initial_loss
    assert all(torch.equal(p, q) for p, q in zip(second.model.parameters(), whole.model.parameters(), strict=True))


def test_divergence_ends_the_run() -> None:
    run = trainer(learning_rate=1e30, grad_norm_clip=0.0, max_iters=100, log_interval=5, ckpt_interval=5)
    got = rows(run)
    saved: list[int] = []
    run.add_callback(at("on_checkpoint", lambda t: saved.append(t.iter)))
    run.run()
    assert run.diverged and run.finished and run.iter < 100
    assert math.isnan(got[-1]["loss"]) and got[-1]["val_loss"] is None
    assert run.iter not in saved


def test_seeds_differ_by_seed_and_step() -> None:
    seeds = {step_seed(seed, step) for seed in range(20) for step in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= s < 2**63 for s in seeds)


def test_two_seeds_two_curves() -> None:
    a, b, c = (trainer(seed=s) for s in (1, 2, 1))
    first, other, again = rows(a), rows(b), rows(c)
    for run in (a, b, c):
        run.run()
    assert first == again
    assert first[-1]["loss"] != other[-1]["loss"]
