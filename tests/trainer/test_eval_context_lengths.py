"""Evaluation at other context lengths: the same tokens at each, right values, and what cannot be is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatrix.trainer import eval_context_lengths
from ablatrix.trainer.config import RunConfig, from_flags, validate
from ablatrix.trainer.data.heldout import HeldOut
from ablatrix.trainer.data.sampling import PADDING
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.eval_context_lengths import cut
from ablatrix.trainer.loop import Trainer
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import ConfigError
from tests.support.workspace import Workspace


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 25), st.randoms(use_true_random=False))
def test_every_length_scores_the_same_tokens(count: int, longest: int, length: int, random: Any) -> None:
    """Tokens are numbered, so that a pair of input and target tells where it comes from."""
    y = np.arange(1, count * longest + 1).reshape(count, longest)
    x = y + 1000
    for row in y:  # documents end somewhere, the rest is padding
        row[random.randint(1, longest) :] = PADDING
    short_x, short_y = cut((x, y), length)
    assert short_x.shape == short_y.shape and short_x.shape[1] == length
    scored = short_y != PADDING
    assert scored.any(axis=1).all()
    assert short_y[scored].tolist() == y[y != PADDING].tolist()
    assert (short_x[scored] == short_y[scored] + 1000).all()


def run_config(lengths: Any, corpus: Path, cache: Path, **model: Any) -> RunConfig:
    tree = {
        "data": {"file_path": str(corpus), "tokenizer": "sample", "block_size": 16, "test_size": 6},
        "model": {"model_type": "gpt-nano", "n_layer": 1, **model},
        "trainer": {"max_iters": 1, "device": "cpu", "eval_tokens": 700, "eval_blocks": lengths},
        "system": {"cache_dir": str(cache)},
    }
    return validate(tree).resolved(4096)


def trainer_of(config: RunConfig) -> tuple[Trainer, HeldOut]:
    text = HeldOut.of(open_tokens(config.data, Path(config.system.cache_dir)), config.data)

    def nothing(start: int, stop: int) -> Iterator[Any]:
        return iter(())

    return Trainer(config, nothing, text.windows(16, 700).pair, "cpu"), text


@pytest.mark.parametrize("positions", ["alibi", "rope", "sinusoidal", "none"])
def test_values(positions: str, corpus: Path, offline_cache: Path) -> None:
    """Against every scored token predicted on its own, from the context that it has at that length."""
    trainer, text = trainer_of(run_config([8, 16, 48], corpus, offline_cache, positions=positions))
    found = eval_context_lengths.evaluate(trainer, text)
    longest = text.windows(48, 700).pair
    assert list(found) == ["8", "16", "48"]
    trainer.model.eval()
    for length in (8, 16, 48):
        total = 0.0
        for x, y in zip(*longest, strict=True):
            for start in range(0, 48, length):
                xs, ys = (torch.from_numpy(a[start : start + length])[None] for a in (x, y))
                scored = ys[0] != PADDING
                if scored.any():
                    with torch.no_grad():
                        log_p = trainer.model(xs)[0].log_softmax(-1)[0]
                    total -= float(log_p[torch.arange(len(scored)), ys[0].clamp(min=0)][scored].sum())
        tokens = int((longest[1] != PADDING).sum())
        assert found[str(length)]["tokens"] == tokens
        assert found[str(length)]["nll"] == pytest.approx(total / tokens, abs=1e-5)


def test_learned_positions_end_at_their_table(corpus: Path, offline_cache: Path) -> None:
    trainer, text = trainer_of(run_config([32, 16], corpus, offline_cache))
    found = eval_context_lengths.evaluate(trainer, text)
    assert found["32"] == {"nll": None, "why": "learned positions end at 16"}
    assert found["16"]["nll"] == pytest.approx(np.log(4096), abs=0.3)


def test_too_little_memory_does_not_cost_the_run(corpus: Path, offline_cache: Path) -> None:
    trainer, text = trainer_of(run_config([16, 32], corpus, offline_cache, positions="alibi"))
    evaluate = trainer.evaluate

    def small(windows: Any) -> float | None:
        if windows[0].shape[1] > 16:
            raise torch.OutOfMemoryError("out of memory: 32 tokens")
        return evaluate(windows)

    trainer.evaluate = small  # type: ignore[method-assign]
    found = eval_context_lengths.evaluate(trainer, text)
    assert found["16"]["nll"] is not None
    assert found["32"] == {"nll": None, "why": "out of memory (out of memory: 32 tokens)"}


def test_flags() -> None:
    for text, lengths in (("256,512", (256, 512)), ("[64]", (64,)), ("64", (64,)), ("()", ())):
        assert from_flags([f"--trainer.eval_blocks={text}"]).trainer.eval_blocks == lengths
    for text in ("a", "0,4", "1.5,2"):
        with pytest.raises(ConfigError, match=r"trainer\.eval_blocks: "):
            from_flags([f"--trainer.eval_blocks={text}"])


def test_lengths_that_no_position_reaches_are_refused(corpus: Path, offline_cache: Path) -> None:
    with pytest.raises(ConfigError, match="learned positions end at block_size 16, so none of 32, 64 can be evaluated"):
        run_config([32, 64], corpus, offline_cache)
    run_config([32, 64], corpus, offline_cache, positions="alibi")


def test_a_study_of_positions(workspace: Workspace) -> None:
    """The baseline's positions are learned: its longer contexts are left out and said, the study goes on."""
    study = workspace.write_study(iters=4)
    base = (
        study.read_text().split("features:")[0].replace("eval_tokens: 2000", "eval_tokens: 2000, eval_blocks: [32, 64]")
    )
    study.write_text(base + "features: {alibi: {model.positions: alibi}}\ndesign: [baseline, one_at_a_time]\n")
    workspace.run("submit", study, "--launcher", "local")
    summaries = {
        cell: json.loads((workspace.run_folder(cell) / run_files.SUMMARY).read_text()) for cell in ("baseline", "alibi")
    }
    learned, alibi = (summaries[cell]["val_nll_by_block"] for cell in ("baseline", "alibi"))
    assert learned["64"] == {"nll": None, "why": "learned positions end at 32"}
    assert learned["32"]["tokens"] == alibi["32"]["tokens"] == alibi["64"]["tokens"]
    said = (workspace.run_folder("baseline") / run_files.JOB_OUT).read_text()
    assert "held-out NLL at 64 tokens of context: not evaluated: learned positions end at 32" in said
    workspace.run("report")
    report = (workspace.folder / "out/study/report/report.md").read_text()
    assert "By context length" in report and "cannot" in report
