"""The inputs of a run: its corpus, the held-out documents, and the checkpoint that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.trainer import checkpoint
from ablatrix.trainer.data.batches import Batches
from ablatrix.trainer.data.heldout import HeldOut, Windows
from ablatrix.trainer.data.tokens import open_tokens

if TYPE_CHECKING:
    from ablatrix.trainer.callbacks.base import Callback
    from ablatrix.trainer.config import RunConfig
    from ablatrix.trainer.data.heldout_records import Records
    from ablatrix.trainer.data.token_store import TokenStore


@dataclass
class Inputs:
    """The inputs of a run: batches, held-out documents and the evaluation set cut from them, and a checkpoint."""

    store: TokenStore
    batches: Batches
    text: HeldOut
    heldout: Windows
    start: dict[str, Any] | None
    custom: Sequence[Callback] = ()  # the user's callbacks
    records: Records | None = None  # records of the evaluation set's documents; only rank 0 has them

    @classmethod
    def open(cls, config: RunConfig, named: bool = True) -> Inputs:
        """Open the inputs. Raises DataError or UserError if the corpus or checkpoint does not fit the configuration.

        named: whether to read the checkpoint that the configuration names.
        """
        resume = config.trainer.resume
        named = named and resume not in ("auto", "none")
        start = checkpoint.load(checkpoint.find_named(resume), config.fingerprint_until) if named else None
        store = open_tokens(config.data, Path(config.system.cache_dir))
        batches = Batches(store, config.data, config.trainer.batch_size, config.system.seed)
        text = HeldOut.open(store, config.data, Path(config.system.cache_dir))
        heldout = text.windows(config.data.block_size, config.trainer.eval_tokens)
        return cls(store, batches, text, heldout, start)
