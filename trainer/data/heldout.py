"""Held-out documents, and the fixed evaluation set cut from them. Torch-free; arrays are numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ablatrix.trainer.data.flat_bin import FlatStore
from ablatrix.trainer.data.sampling import PADDING
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import DataError

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig
    from ablatrix.trainer.data.token_store import TokenStore

Array = np.ndarray[Any, Any]
SHORT_DOCUMENT = 64  # tokens assumed per document when estimating how many documents are needed


@dataclass(frozen=True)
class Windows:
    """An evaluation set: windows from held-out documents, the same for every seed.

    x, y: (N, T) int64; y is x shifted by one, or PADDING. lines: (D,) line of each document that has a window, in
    order; counts: (D,) number of tokens in each; document: (N,) document of each window, as an index into `lines`.
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
        """Number of scored tokens in each document, (D,)."""
        return self.sum_by_document((self.y != PADDING).sum(axis=1))

    def sum_by_document(self, values: Array) -> Array:
        """Return the sums of values (N,) over each document's windows, (D,)."""
        sums: Array = np.bincount(self.document, weights=values, minlength=len(self.lines))
        return sums


@dataclass(frozen=True)
class HeldOut:
    """The held-out documents of a run: lines of a store.

    exact: evaluate exactly the requested number of tokens. separator: the token that documents start with in training.
    """

    store: TokenStore
    lines: Sequence[int]
    exact: bool = False
    separator: int | None = None

    @classmethod
    def of(cls, store: TokenStore, config: DataConfig) -> HeldOut:
        """Return the documents held out of a corpus. Raises DataError if no others are left."""
        size = config.held_out
        lines = range(store.first_held_out(size), store.n_lines) if size else range(0)
        return cls(store, lines, isinstance(size, float), config.separator)

    @classmethod
    def open(cls, store: TokenStore, config: DataConfig, cache_dir: Path) -> HeldOut:
        """Return the documents held out of a corpus, or those of `test_file`. Raises DataError if there are none."""
        return cls.of_file(config, cache_dir) if config.test_file else cls.of(store, config)

    @classmethod
    def of_file(cls, config: DataConfig, cache_dir: Path) -> HeldOut:
        """Return the documents of `test_file`. Raises DataError if it cannot be used."""
        other = open_tokens(config.test_corpus, cache_dir)
        return cls(other, range(other.n_lines), True, config.separator)

    def windows(self, block_size: int, eval_tokens: int) -> Windows:
        """Return the evaluation set, which is empty without held-out documents.

        Every held-out document is cut into consecutive windows, so that each of its tokens except the first is a target
        once. If there are more than `eval_tokens` targets, evenly spaced windows are used. The targets do not depend
        on the separator. Raises DataError if `exact` and there are fewer targets.
        """
        lines, counts = self._sample(eval_tokens)
        targets = np.maximum(counts - 1, 0)
        windows = -(-targets // block_size)  # per document
        if targets.sum() > eval_tokens:
            owners, starts = self._choose(targets, windows, block_size, eval_tokens)
        else:
            owners, starts = _find_windows(np.arange(windows.sum()), windows, block_size)
        x = np.zeros((len(owners), block_size), dtype=np.int64)
        y = np.full((len(owners), block_size), PADDING, dtype=np.int64)
        for row, (k, start) in enumerate(zip(owners.tolist(), starts.tolist(), strict=True)):
            piece = self.store.read(lines[k], start, min(start + block_size + 1, int(counts[k])))
            x[row, : len(piece) - 1], y[row, : len(piece) - 1] = piece[:-1], piece[1:]
        if self.exact:
            y[np.cumsum(y.ravel() != PADDING).reshape(y.shape) > eval_tokens] = PADDING
        elif targets.sum() > eval_tokens:
            y[:, eval_tokens:] = PADDING  # a single window may have more than `eval_tokens` targets
        if self.separator is not None and not isinstance(self.store, FlatStore):
            x, y, more = _begin_with_separator(x, y, starts == 0, self.separator)
            owners = np.concatenate([owners, owners[more]])
        return self._with_owners(x, y, lines, counts, owners)

    def _sample(self, eval_tokens: int) -> tuple[Sequence[int], Array]:
        """Return (lines, token counts): of many documents, evenly spaced ones that have enough tokens in total.

        If the cache is still being built, every document that is counted here has to be tokenized.
        """
        wanted = eval_tokens // SHORT_DOCUMENT + 1
        while True:
            lines = self.lines
            if self.exact and wanted < len(lines):
                lines = [self.lines[(2 * k + 1) * len(lines) // (2 * wanted)] for k in range(wanted)]
            counts = np.array([self.store.count(line) for line in lines], dtype=np.int64)
            tokens = int(np.maximum(counts - 1, 0).sum())
            if not self.exact or tokens >= eval_tokens:
                return lines, counts
            if len(lines) == len(self.lines):
                raise DataError(
                    f"{self.store.name}: the held-out text has {tokens:,} tokens to score, fewer than "
                    f"trainer.eval_tokens {eval_tokens:,}; hold out more text, or lower trainer.eval_tokens"
                )
            wanted *= 4

    def _choose(self, targets: Array, windows: Array, block_size: int, eval_tokens: int) -> tuple[Array, Array]:
        """Return (document, start) of evenly spaced windows; if `exact`, with at least `eval_tokens` targets.

        targets, windows: number of each per document.
        """
        total, keep = int(windows.sum()), max(1, eval_tokens // block_size)
        while True:
            chosen = (2 * np.arange(keep) + 1) * total // (2 * keep)
            owners, starts = _find_windows(chosen, windows, block_size)
            missing = eval_tokens - int(np.minimum(targets[owners] - starts, block_size).sum())
            if not self.exact or missing <= 0 or keep >= total:
                return owners, starts
            keep = min(total, keep + -(-missing // block_size))

    def _with_owners(self, x: Array, y: Array, lines: Sequence[int], counts: Array, owners: Array) -> Windows:
        """Return windows with their documents; in a file of token ids, each window counts as a document."""
        if isinstance(self.store, FlatStore):
            every = np.arange(len(x))
            return Windows(x, y, every, (y != PADDING).sum(axis=1), every)
        kept, document = np.unique(owners, return_inverse=True)
        return Windows(x, y, np.array(lines, dtype=np.int64)[kept], counts[kept], document)


def _find_windows(chosen: Array, windows: Array, block_size: int) -> tuple[Array, Array]:
    """Return (document, first token) of chosen windows, numbered over all documents. windows: count per document."""
    ends = np.cumsum(windows)
    owners = np.searchsorted(ends, chosen, side="right")
    return owners, (chosen - (ends - windows)[owners]) * block_size


def _begin_with_separator(x: Array, y: Array, first: Array, separator: int) -> tuple[Array, Array, Array]:
    """Return windows (N + M, T) in which each document's first window starts with the separator; targets are unchanged.

    first: (N,) True for the first window of a document. If such a window was full, its last target no longer fits and
    gets a window of its own: these M windows come last, and the indices (M,) of the full windows are returned too.
    """
    full = np.flatnonzero(first & (y[:, -1] != PADDING))
    last = np.full_like(y[full], PADDING)
    last[:, -1] = y[full, -1]
    more_x = x[full]
    x[first, 1:], y[first, 1:] = x[first, :-1], y[first, :-1]
    x[first, 0], y[first, 0] = separator, PADDING
    return np.concatenate([x, more_x]), np.concatenate([y, last]), full
