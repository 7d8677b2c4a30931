"""The trained weights of a run: the final ones, or else those of its newest checkpoint."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ablatrix.trainer import checkpoint
from ablatrix.trainer.config import load
from ablatrix.trainer.data import tokenizer
from ablatrix.trainer.out_of_memory import first_line
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.trainer.config import RunConfig


def read_config(run_dir: Path) -> RunConfig:
    """Return the configuration of a trainer run, with all sizes set. Raises UserError if the folder has none."""
    path = run_dir / run_files.CONFIG
    if not path.exists():
        raise UserError(f"{run_dir} is not a run's folder ({run_files.CONFIG} is missing)")
    config = load(path)
    if None in (*config.model.sizes(), config.model.vocab_size, config.model.block_size):  # the run has not started
        return config.resolved(*tokenizer.vocabulary(config.data, Path(config.system.cache_dir)))
    return config.model_copy(update={"model": config.model.resolved(0, 0)})


def read_weights(run_dir: Path, config: RunConfig) -> tuple[dict[str, Any], int]:
    """Return a run's state dict, on the CPU, and the number of steps it was trained for.

    Raises UserError if the run has no weights yet, or if they cannot be read.
    """
    path = run_dir / run_files.MODEL
    if path.exists():
        summary = run_files.read_json(run_dir / run_files.SUMMARY) or {}
        return read_state(path), int(summary.get("iters", config.trainer.max_iters))
    found = checkpoint.checkpoints(run_dir)
    if not found:
        raise UserError(
            f"{run_dir}: no weights found (neither {run_files.MODEL} nor a checkpoint); wait for its first checkpoint"
        )
    state = checkpoint.load(found[0], config.fingerprint_until)
    return state["model"], state["step"]


def read_state(path: Path, device: str = "cpu") -> dict[str, Any]:
    """Return the state dict from a model.pt. Raises UserError if it cannot be read."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:  # torch's own message advises loading it anyway
        raise UserError(f"{path} is corrupt, or contains more than tensors; choose another run") from None
    except (OSError, EOFError, RuntimeError, ValueError) as error:
        raise UserError(f"cannot read {path} ({first_line(error)}); choose another run") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: no weights found; choose another run")
    return state
