"""Held-out NLL at context lengths other than the trained one: how well positions extrapolate (Press et al. 2021).

The same tokens are scored at every length: windows of the longest length are cut into shorter ones, so that only the
context from which each token is predicted differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ablatrix.models.config import ResolvedGPTConfig
from ablatrix.trainer.data.sampling import PADDING
from ablatrix.trainer.out_of_memory import first_line, give_back, is_out_of_memory

if TYPE_CHECKING:
    from ablatrix.trainer.config import RunConfig
    from ablatrix.trainer.data.heldout import HeldOut
    from ablatrix.trainer.distributed.single import Array
    from ablatrix.trainer.loop import Trainer


def cut(windows: tuple[Array, Array], length: int) -> tuple[Array, Array]:
    """Cut windows x, y (N, T) into windows of `length` tokens, padding the last piece of each."""
    x, y = windows
    count, longest = x.shape
    pieces = -(-longest // length)
    short_x = np.zeros((count, pieces * length), dtype=np.int64)
    short_y = np.full((count, pieces * length), PADDING, dtype=np.int64)
    short_x[:, :longest], short_y[:, :longest] = x, y
    short_x, short_y = short_x.reshape(-1, length), short_y.reshape(-1, length)
    scored = (short_y != PADDING).any(axis=1)
    return short_x[scored], short_y[scored]


def evaluate(trainer: Trainer, text: HeldOut) -> dict[str, dict[str, Any]]:
    """Return {length: {"nll": nats per token, "tokens": scored} or {"nll": None, "why": reason}} for eval_blocks.

    Every process of a run must call this. Lengths that exceed the model's positions or the available memory are
    skipped: training is over, and its result must not be lost.
    """
    config = trainer.config
    wanted = config.trainer.eval_blocks
    if not wanted:
        return {}
    windows = text.windows(max(wanted), config.trainer.eval_tokens).pair
    return {str(length): _at(trainer, windows, length) for length in sorted(set(wanted))}


def _at(trainer: Trainer, windows: tuple[Array, Array], length: int) -> dict[str, Any]:
    why = out_of_reach(trainer.config, length)
    if why:
        return {"nll": None, "why": why}
    pieces = cut(windows, length)
    try:
        nll = trainer.evaluate(pieces)
    except (RuntimeError, MemoryError) as error:
        if not (trainer.strategy.can_retry and is_out_of_memory(error)):
            raise
        why = f"out of memory ({first_line(error)})"
    if why:
        give_back(trainer.device)
        return {"nll": None, "why": why}
    if nll is None or not np.isfinite(nll):
        return {"nll": None, "why": "nothing is held out" if nll is None else "not a number"}
    return {"nll": nll, "tokens": int((pieces[1] != PADDING).sum())}


def out_of_reach(config: RunConfig, length: int) -> str:
    """Return why a resolved config's model cannot process `length` tokens, '' if it can."""
    model = ResolvedGPTConfig.of(config.model)
    if length <= model.block_size or model.extrapolates:
        return ""
    return f"{model.positions} positions end at {model.block_size}"
