"""Held-out documents, and the fixed evaluation set that is cut from them. Free of torch; arrays are numpy's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ablatrix.trainer.data.flat_bin import FlatStore
from ablatrix.trainer.data.sampling import PADDING

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig
    from ablatrix.trainer.data.token_store import TokenStore

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Windows:
    """An evaluation set: windows of held-out documents, the same for every seed.

    x, y: (N, T) int64; y is x shifted by one, or PADDING. lines: (D,) line of each document that has a window, in
    order; counts: (D,) tokens of each; document: (N,) each window's document, as a position in `lines`.
    """

    x: Array
    y: Array
    lines: Array
    counts: Array
    document: Array

    @property
    def pair(self) -> tuple[Array, Array]:
        return self.x, self.y

    @property
    def scored(self) -> Array:
        """Scored tokens of each document, (D,)."""
        return self.sum_by_document((self.y != PADDING).sum(axis=1))

    def sum_by_document(self, values: Array) -> Array:
        """Return the sums of values (N,) over each document's windows, (D,)."""
        sums: Array = np.bincount(self.document, weights=values, minlength=len(self.lines))
        return sums


@dataclass(frozen=True)
class HeldOut:
    """The held-out documents of a run: lines of a store."""

    store: TokenStore
    lines: range

    @classmethod
    def of(cls, store: TokenStore, config: DataConfig) -> HeldOut:
        """Return the last `test_size` documents of a corpus. Raises DataError if no other is left."""
        first = store.first_held_out(config.test_size)
        return cls(store, range(first, store.n_lines) if config.test_size else range(0))

    def windows(self, block_size: int, eval_tokens: int) -> Windows:
        """Return the evaluation set. It is empty without held-out documents.

        Every held-out document is cut into consecutive windows, so that each of its tokens but the first is a target
        once. If that exceeds `eval_tokens` targets, evenly spaced windows are taken.
        """
        counts = np.array([self.store.count(line) for line in self.lines], dtype=np.int64)
        targets = np.maximum(counts - 1, 0)
        ends = np.cumsum(-(-targets // block_size))  # windows up to the end of each document
        chosen = np.arange(ends[-1] if len(ends) else 0)
        if targets.sum() > eval_tokens:
            keep = max(1, eval_tokens // block_size)
            chosen = (2 * np.arange(keep) + 1) * len(chosen) // (2 * keep)
        x = np.zeros((len(chosen), block_size), dtype=np.int64)
        y = np.full((len(chosen), block_size), PADDING, dtype=np.int64)
        owners = np.searchsorted(ends, chosen, side="right")
        for row, (window, k) in enumerate(zip(chosen.tolist(), owners.tolist(), strict=True)):
            start = int(window - (ends[k] - -(-targets[k] // block_size))) * block_size
            piece = self.store.read(self.lines[k], start, min(start + block_size + 1, int(counts[k])))
            x[row, : len(piece) - 1], y[row, : len(piece) - 1] = piece[:-1], piece[1:]
        if targets.sum() > eval_tokens:
            y[:, eval_tokens:] = PADDING  # a single window may hold more than was asked for
        return self._with_owners(x, y, counts, owners)

    def _with_owners(self, x: Array, y: Array, counts: Array, owners: Array) -> Windows:
        """Return windows with the documents that they belong to: in a file of token ids each is one by itself."""
        if isinstance(self.store, FlatStore):
            every = np.arange(len(x))
            return Windows(x, y, every, (y != PADDING).sum(axis=1), every)
        kept, document = np.unique(owners, return_inverse=True)
        return Windows(x, y, kept + self.lines.start, counts[kept], document)
