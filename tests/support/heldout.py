"""The evaluation set of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ablatrix.trainer.data.heldout import HeldOut

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig
    from ablatrix.trainer.data.heldout import Array
    from ablatrix.trainer.data.token_store import TokenStore


def heldout_windows(store: TokenStore, config: DataConfig, eval_tokens: int) -> tuple[Array, Array]:
    """Return the evaluation windows x, y of a run, (N, T) each."""
    return HeldOut.of(store, config).windows(config.block_size, eval_tokens).pair
