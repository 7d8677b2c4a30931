"""A small run in the tests' own process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablatrix.trainer.config import from_flags
from ablatrix.trainer.run import execute
from ablatrix.trainer.signals import StopSignals


@pytest.fixture
def train(tmp_path: Path, corpus: Path, offline_cache: Path) -> Callable[..., Path]:
    """train("name", code=0, trainer__max_iters=9): a small run in this process; its folder."""

    def train(name: str = "run", code: int = 0, **settings: Any) -> Path:
        flags = {
            "data.file_path": corpus,
            "data.tokenizer": "sample",
            "data.block_size": 8,
            "data.test_size": 4,
            "model.model_type": None,
            "model.n_layer": 1,
            "model.n_head": 1,
            "model.n_embd": 8,
            "trainer.max_iters": 24,
            "trainer.batch_size": 2,
            "trainer.learning_rate": 1e-2,
            "trainer.log_interval": 3,
            "trainer.eval_interval": 4,
            "trainer.eval_tokens": 128,
            "trainer.ckpt_interval": 5,
            "trainer.device": "cpu",
            "system.cache_dir": offline_cache,
            "system.work_dir": tmp_path / name,
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
        argv = [f"--{key}={value}" for key, value in flags.items()]
        assert execute(from_flags(argv), argv, StopSignals()) == code
        return tmp_path / name

    return train


@pytest.fixture
def cache_dir(offline_cache: Path, tmp_path: Path) -> Path:
    """An offline cache for one test, without token caches."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "manifest.json").write_bytes((offline_cache / "manifest.json").read_bytes())
    (folder / "tokenizers").symlink_to(offline_cache / "tokenizers")
    return folder
