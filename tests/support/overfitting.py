"""A corpus on which a small model overfits, and the held-out NLL of its weights."""

from __future__ import annotations

from pathlib import Path

import torch

from ablatrix.models.gpt import GPT
from ablatrix.trainer.config import load
from ablatrix.trainer.loop import Trainer
from ablatrix.trainer.rundir import run_files
from tests.support.heldout import heldout_windows

TAUGHT, OTHER = "the cat sat on the mat and ", "no dog ever ran to any door or "
# Half of the held-out text is learned: its NLL falls, then rises as the model grows confident about the wrong half
OVERFITTING = [TAUGHT * 4] * 12 + [(TAUGHT + OTHER) * 2] * 4


def held_out(run: Path, weights: str) -> float | None:
    """Return the NLL of a weights file on the run's held-out set."""
    from ablatrix.trainer.data.tokens import open_tokens

    config = load(run / run_files.CONFIG)
    windows = heldout_windows(open_tokens(config.data, Path(config.system.cache_dir)), config.data, 128)
    trainer = Trainer(config, lambda start, stop: iter(()), windows)
    trainer.model = GPT.from_state(config.model, torch.load(run / weights, weights_only=True))
    return trainer.evaluate()
