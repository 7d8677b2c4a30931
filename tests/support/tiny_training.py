"""A model of a few hundred parameters, and batches that it can learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.distributed.single import Array
from ablatrix.trainer.loop import Trainer
from tests.support.callbacks import at

VOCAB, BLOCK = 17, 8


def config(**trainer: Any) -> RunConfig:
    sizes = {"model_type": None, "n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": VOCAB, "block_size": BLOCK}
    model = {**sizes, **trainer.pop("model", {})}
    seed = trainer.pop("seed", 11)
    settings = {"max_iters": 25, "batch_size": 4, "learning_rate": 1e-2, "log_interval": 10, "eval_interval": 0}
    return RunConfig.model_validate(
        {
            "data": {"file_path": "x", "block_size": BLOCK},
            "model": model,
            "trainer": {**settings, **trainer},
            "system": {"seed": seed},
        }
    )


def source(start: int, stop: int) -> Iterator[tuple[Array, Array]]:
    for i in range(start, stop):
        yield batch(0, i)


def heldout() -> tuple[Array, Array]:
    x, y = batch(1, 0, 7)
    y[-1, -3:] = -1
    return x, y


def rows(of: Trainer) -> list[dict[str, Any]]:
    """Return the list to which the trainer's future rows are added, without clock columns."""
    kept: list[dict[str, Any]] = []
    of.add_callback(at("on_row", lambda t: kept.append({k: v for k, v in t.row.items() if k not in ("dt", "seconds")})))
    return kept


def batch(seed: int, i: int, size: int = 4) -> tuple[Array, Array]:
    """Return x, y of (size, BLOCK) that count up modulo VOCAB from a random start: learnable without error."""
    start = np.random.Generator(np.random.Philox(key=[seed, i])).integers(0, VOCAB, (size, 1))
    tokens = (start + np.arange(BLOCK + 1)) % VOCAB
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def trainer(**settings: Any) -> Trainer:
    return Trainer(config(**settings), source, heldout())
