"""Batches and held-out windows of a tokenised corpus. Free of torch; arrays are numpy's.

Sampling: pick a document uniformly; if it has fewer than block_size + 1 tokens (or is none) pick again; then a random
window of it. Batch i draws from a counter-based generator (Philox, Salmon et al. 2011) keyed by the seed whose counter
starts at i: it is a pure function of (seed, i), the same for every model and after every restart.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from trainer import tokenbuild
from trainer.config import DataConfig
from trainer.device import allotted_cores
from trainer.errors import DataError
from trainer.tokencache import Cache

PADDING = -1  # a target that is not scored
STREAM = 0x62617463  # second word of the generator's key: batches, and nothing else that a seed decides


class TokenStore:
    """The tokens of a corpus, by line number; lines that are no document have none.

    vocab_size, n_lines, n_documents; skipped: lines left out, by reason; fingerprint: SHA-256 of what was read.
    tokens: all ids one after the other, a memmap; offsets: (n_lines + 1,), line i is tokens[offsets[i]:offsets[i + 1]].
    """

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder, self.name = folder, meta["source"]
        self.vocab_size: int = meta["vocab_size"]
        self.n_lines: int = meta["lines"]
        self.n_documents: int = meta["documents"]
        self.skipped: dict[str, int] = meta["skipped"]
        self.fingerprint: str = meta["fingerprint"]
        self.dtype = np.dtype(meta["dtype"]).newbyteorder("<")
        self.offsets: np.ndarray = np.load(folder / "offsets.npy", mmap_mode="r")
        self._file = open(folder / "tokens.bin", "rb", buffering=0)  # noqa: SIM115 - lives as long as the store

    @property
    def tokens(self) -> np.ndarray:
        """(n_tokens,) all ids; a memmap, whose pages count as this process's memory once they are touched."""
        return np.memmap(self.folder / "tokens.bin", dtype=self.dtype, mode="r")

    def counts(self, lines: np.ndarray) -> np.ndarray:
        """(n,) number of tokens of each of n lines."""
        return self.offsets[lines + 1] - self.offsets[lines]

    def read(self, line: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a line. Reads them from the file, so that memory does not grow with the corpus."""
        size = self.dtype.itemsize
        begin = int(self.offsets[line]) + start
        return np.frombuffer(os.pread(self._file.fileno(), (stop - start) * size, begin * size), dtype=self.dtype)

    def document(self, line: int) -> np.ndarray:
        """All tokens of a line."""
        return self.read(line, 0, int(self.offsets[line + 1] - self.offsets[line]))

    def first_held_out(self, test_size: int) -> int:
        """The line at which the last `test_size` documents begin. Raises DataError where no other is left."""
        if test_size >= self.n_documents:
            raise DataError(
                f"{self.name}: data.test_size is {test_size}, but the file has only {self.n_documents} documents; "
                f"set it to at most {self.n_documents - 1}"
            )
        stop, missing = self.n_lines, test_size
        while missing:
            start = max(0, stop - (1 << 20))
            documents = start + np.flatnonzero(np.diff(self.offsets[start : stop + 1]))
            if len(documents) >= missing:
                return int(documents[-missing])
            stop, missing = start, missing - len(documents)
        return self.n_lines

    def require(self, lines: range, length: int) -> None:
        """Raises DataError unless one of these lines has `length` tokens."""
        longest = 0
        for start in range(lines.start, lines.stop, 1 << 20):
            stop = min(lines.stop, start + (1 << 20))
            longest = max(longest, int(np.diff(self.offsets[start : stop + 1]).max()))
            if longest >= length:
                return
        raise too_short(self.name, longest, length)


def too_short(name: str, longest: int, length: int) -> DataError:
    """The error for a split in which no document fills a window of `length` tokens."""
    return DataError(
        f"{name}: the longest document has {longest} tokens, but data.block_size {length - 1} needs {length}; "
        f"set data.block_size to at most {max(longest - 1, 1)}"
    )


def open_tokens(config: DataConfig, cache_dir: Path) -> TokenStore:
    """The tokens of a corpus, from the cache that all runs share; built first where it is missing.

    Raises DataError where the file cannot be used, OfflineCacheError where the tokenizer is missing.
    """
    cache = Cache.of(config, cache_dir)
    meta = cache.meta() or tokenbuild.build(config, cache_dir, allotted_cores())
    return TokenStore(cache.folder, meta)


def split_lines(store: TokenStore, config: DataConfig) -> range:
    """The lines of the documents that are trained on. Raises DataError where there is none."""
    boundary = store.first_held_out(config.test_size)
    if config.split == "train":
        return range(boundary)
    if not config.test_size:
        raise DataError("data.split is test, but data.test_size is 0: no document is held out")
    return range(boundary, store.n_lines)


class Batches:
    """Batch i as a pure function of (seed, i). Safe to call from several threads."""

    def __init__(self, store: TokenStore, config: DataConfig, batch_size: int, seed: int) -> None:
        """Raises DataError where no document of the split fills a window."""
        self.store, self.batch_size, self.seed = store, batch_size, seed
        self.length = config.block_size + 1
        self.lines = split_lines(store, config)
        store.require(self.lines, self.length)

    def __call__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of step i: (B, T) int64 each; y is x shifted by one."""
        windows = np.empty((self.batch_size, self.length), dtype=np.int64)
        for window, (line, start) in zip(windows, self._accepted(i), strict=False):
            window[:] = self.store.read(line, start, start + self.length)
        return np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])

    def _accepted(self, i: int) -> Iterator[tuple[int, int]]:
        """(line, start) of the windows that stream i draws, without end. Each draw takes two words of the stream."""
        stream = np.random.Philox(
            key=np.array([self.seed, STREAM], np.uint64), counter=np.array([0, 0, i, 0], np.uint64)
        )
        while True:
            words = stream.random_raw(4 * self.batch_size).reshape(-1, 2)
            lines = self.lines.start + scale(words[:, 0], np.int64(len(self.lines)))
            counts = self.store.counts(lines)
            long = counts >= self.length
            starts = scale(words[long, 1], counts[long] - self.length + 1)
            yield from zip(lines[long].tolist(), starts.tolist(), strict=True)


def scale(words: np.ndarray, limit: np.ndarray | np.int64) -> np.ndarray:
    """Random 64-bit words as integers in [0, limit): the upper 53 bits as a fraction, times the limit."""
    fraction = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (fraction * limit).astype(np.int64)


def prefetch(
    batches: Callable[[int], tuple[np.ndarray, np.ndarray]], start: int, stop: int, workers: int
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Batches start .. stop - 1 in order, prepared ahead by `workers` threads; 0: when they are asked for."""
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


def heldout_windows(store: TokenStore, config: DataConfig, eval_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The evaluation set: x, y of shape (N, T) int64; y == -1 is padding and not scored. The same for every seed.

    Every held-out document is cut into consecutive windows, so that each of its tokens but the first is a target once.
    Where that is more than `eval_tokens` targets, evenly spaced windows are taken. N is 0 without held-out documents.
    """
    block = config.block_size
    first = store.first_held_out(config.test_size)
    windows: list[tuple[np.ndarray, int]] = []
    for line in range(first, store.n_lines) if config.test_size else ():
        document = store.document(line)
        windows += [(document, start) for start in range(0, len(document) - 1, block)]
    scored = sum(min(block, len(document) - 1 - start) for document, start in windows)
    if scored > eval_tokens:
        keep = max(1, eval_tokens // block)
        windows = [windows[(2 * k + 1) * len(windows) // (2 * keep)] for k in range(keep)]
    x = np.zeros((len(windows), block), dtype=np.int64)
    y = np.full((len(windows), block), PADDING, dtype=np.int64)
    for k, (document, start) in enumerate(windows):
        piece = document[start : start + block + 1]
        x[k, : len(piece) - 1], y[k, : len(piece) - 1] = piece[:-1], piece[1:]
    if scored > eval_tokens:
        y[:, eval_tokens:] = PADDING  # a single window may hold more than was asked for
    return x, y
