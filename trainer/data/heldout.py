"""Held-out documents, and the fixed evaluation set that is cut from them. Torch-free; arrays are numpy's."""

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
SHORT_DOCUMENT = 64  # tokens: so many are expected of a document when their number is estimated


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
    """The held-out documents of a run: lines of a store.

    exact: exactly the number of tokens asked for is evaluated. separator: the first token of documents in training.
    """

    store: TokenStore
    lines: Sequence[int]
    exact: bool = False
    separator: int | None = None

    @classmethod
    def of(cls, store: TokenStore, config: DataConfig) -> HeldOut:
        """Return the documents held out of a corpus. Raises DataError if no other is left."""
        size = config.held_out
        lines = range(store.first_held_out(size), store.n_lines) if size else range(0)
        return cls(store, lines, isinstance(size, float), config.separator)

    @classmethod
    def open(cls, store: TokenStore, config: DataConfig, cache_dir: Path) -> HeldOut:
        """Return the documents held out of a corpus, or those of `test_file`. Raises DataError if there is none."""
        return cls.of_file(config, cache_dir) if config.test_file else cls.of(store, config)

    @classmethod
    def of_file(cls, config: DataConfig, cache_dir: Path) -> HeldOut:
        """Return the documents of `test_file`. Raises DataError if it cannot be used."""
        other = open_tokens(config.test_corpus, cache_dir)
        return cls(other, range(other.n_lines), True, config.separator)

    def windows(self, block_size: int, eval_tokens: int) -> Windows:
        """Return the evaluation set. It is empty without held-out documents.

        Every held-out document is cut into consecutive windows, so that each of its tokens but the first is a target
        once. If that exceeds `eval_tokens` targets, evenly spaced windows are taken. The targets do not depend on the
        separator. Raises DataError if `exact` and there is less.
        """
        lines, counts = self._sample(eval_tokens)
        targets = np.maximum(counts - 1, 0)
        windows = -(-targets // block_size)  # of each document
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
            y[:, eval_tokens:] = PADDING  # a single window may hold more than was asked for
        if self.separator is not None and not isinstance(self.store, FlatStore):
            x, y, more = _begin_with_separator(x, y, starts == 0, self.separator)
            owners = np.concatenate([owners, owners[more]])
        return self._with_owners(x, y, lines, counts, owners)

    def _sample(self, eval_tokens: int) -> tuple[Sequence[int], Array]:
        """Return (lines, tokens of each). Of many documents evenly spaced ones are taken, with enough tokens in all.

        A corpus whose cache is being built would tokenize every document that is counted here.
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

        targets, windows: their numbers in each document.
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
        """Return windows with the documents that they belong to: in a file of token ids each window is a document."""
        if isinstance(self.store, FlatStore):
            every = np.arange(len(x))
            return Windows(x, y, every, (y != PADDING).sum(axis=1), every)
        kept, document = np.unique(owners, return_inverse=True)
        return Windows(x, y, np.array(lines, dtype=np.int64)[kept], counts[kept], document)


def _find_windows(chosen: Array, windows: Array, block_size: int) -> tuple[Array, Array]:
    """Return (document, first token) of windows by their number in all documents. windows: each document's count."""
    ends = np.cumsum(windows)
    owners = np.searchsorted(ends, chosen, side="right")
    return owners, (chosen - (ends - windows)[owners]) * block_size


def _begin_with_separator(x: Array, y: Array, first: Array, separator: int) -> tuple[Array, Array, Array]:
    """Return windows (N + M, T) of which the first one of each document begins with the separator, with equal targets.

    first: (N,) True for the first window of a document. Where it was full its last target, for which no room is left,
    gets a window of its own: these M windows follow, and their numbers (M,) are returned too.
    """
    full = np.flatnonzero(first & (y[:, -1] != PADDING))
    last = np.full_like(y[full], PADDING)
    last[:, -1] = y[full, -1]
    more_x = x[full]
    x[first, 1:], y[first, 1:] = x[first, :-1], y[first, :-1]
    x[first, 0], y[first, 0] = separator, PADDING
    return np.concatenate([x, more_x]), np.concatenate([y, last]), full
