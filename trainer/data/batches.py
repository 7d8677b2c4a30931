"""Batches from a tokenized corpus. Torch-free; arrays are numpy arrays.

Sampling `document`: pick a line uniformly; if it is not a document of at least block_size + 1 tokens, pick again; then
take a random window of it. `stream` and `packed`: see trainer.data.sampling. Batch i draws from a counter-based
generator (Philox, Salmon et al. 2011) keyed by the seed, with its counter starting at i: it is a pure function of
(seed, i), the same for every model and after every restart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ablatrix.trainer.data.flat_bin import FlatStore
from ablatrix.trainer.data.sampling import Packing, TrainingText
from ablatrix.trainer.rundir.errors import DataError

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig
    from ablatrix.trainer.data.token_store import TokenStore

STREAM = 0x62617463  # second word of the generator's key, which keeps batches independent of other uses of the seed


def split_lines(store: TokenStore, config: DataConfig) -> range:
    """Return the lines of the documents in `data.split`. Raises DataError if there are none."""
    boundary = store.first_held_out(config.held_out)
    if config.split == "train":
        return range(boundary)
    if not config.held_out:
        raise DataError("data.split is test, but data.test_size is 0: no document is held out")
    return range(boundary, store.n_lines)


def training_text(store: TokenStore, config: DataConfig) -> TrainingText:
    """Return the text of `data.split`, for the sampling modes that need a separator."""
    if config.separator is None:
        raise DataError(f"data.sampling: {config.sampling} needs data.separator")
    return TrainingText(store, split_lines(store, config), config.separator)


class Batches:
    """Batch i as a pure function of (seed, i). Thread-safe."""

    def __init__(self, store: TokenStore, config: DataConfig, batch_size: int, seed: int) -> None:
        """Prepare the sampling. Raises DataError if nothing in the split fills a window."""
        self.store, self.batch_size, self.seed = store, batch_size, seed
        self.length = config.block_size + 1
        self.lines = split_lines(store, config)
        flat = isinstance(store, FlatStore)  # already a stream: its windows are those of its single document
        if flat and config.sampling == "packed":
            raise DataError(f"{store.name}: token ids without documents to pack; set data.sampling to stream")
        if flat or config.sampling == "document":
            self._draw = self._draw_windows
            store.require(self.lines, self.length)
            return
        self._text = training_text(store, config)
        self._draw = self._draw_stream if config.sampling == "stream" else self._draw_blocks
        self._packing = Packing(self._text, config.block_size)
        self._text.require(self.length if config.sampling == "stream" else 1)

    def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs x and targets y of step i, (B, T) int64 each; y == -1 is padding, which is not scored.

        y is x shifted by one, except in packed blocks, where it ends with each document.
        """
        return self._draw(i)

    def _draw_windows(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        windows = np.empty((self.batch_size, self.length), dtype=np.int64)
        for window, (line, start) in zip(windows, self._accepted(i), strict=False):
            window[:] = self.store.read(line, start, start + self.length)
        return _shifted(windows)

    def _draw_stream(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        windows = np.empty((self.batch_size, self.length), dtype=np.int64)
        drawn = self._drawn_tokens(i)
        for window in windows:
            while self._text.read(*next(drawn), window) < self.length:
                pass  # too close to the end of the text
        return _shifted(windows)

    def _draw_blocks(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = (np.empty((self.batch_size, self.length - 1), dtype=np.int64) for _ in range(2))
        for inputs, targets, token in zip(x, y, self._drawn_tokens(i), strict=False):
            self._packing.fill(*token, inputs, targets)
        return x, y

    def _accepted(self, i: int) -> Iterator[tuple[int, int]]:
        """Yield (line, start) of windows drawn from stream i, without end. Each draw takes two words of the stream."""
        for fractions in self._fractions(i, 4 * self.batch_size):
            lines = self.lines.start + (fractions[::2] * len(self.lines)).astype(np.int64)
            starts = fractions[1::2].tolist()
            for k, count in self.store.accepted(lines, self.length):
                yield int(lines[k]), int(starts[k] * (count - self.length + 1))

    def _drawn_tokens(self, i: int) -> Iterator[tuple[int, int]]:
        """Yield (line, position) of tokens drawn from stream i, without end. Each draw takes one word of the stream."""
        for fractions in self._fractions(i, 8 * self.batch_size):
            yield from self._text.draw(fractions)

    def _fractions(self, i: int, count: int) -> Iterator[np.ndarray]:
        """Yield arrays of `count` uniform numbers in [0, 1) from stream i, without end."""
        key, counter = np.array([self.seed, STREAM], np.uint64), np.array([0, 0, i, 0], np.uint64)
        stream = np.random.Philox(key=key, counter=counter)
        while True:
            yield (stream.random_raw(count) >> np.uint64(11)) * 2.0**-53  # exact


def _shifted(windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs and targets (B, T) of windows (B, T + 1)."""
    return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])


def prefetch(
    batches: Callable[[int], tuple[np.ndarray, np.ndarray]], start: int, stop: int, workers: int
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Yield batches start .. stop - 1 in order, prefetched by `workers` threads; with 0 they are prepared on demand."""
    if workers == 0:
        yield from map(batches, range(start, stop))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batches")
    try:
        pending = deque(pool.submit(batches, i) for i in range(start, min(stop, start + 2 * workers)))
        for i in range(start, stop):
            ready = pending.popleft().result()
            if i + 2 * workers < stop:
                pending.append(pool.submit(batches, i + 2 * workers))
            yield ready
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
