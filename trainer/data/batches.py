"""Batches and held-out windows of a tokenised corpus. Free of torch; arrays are numpy's.

Sampling: pick a document uniformly; if it has fewer than block_size + 1 tokens (or is none) pick again; then a random
window of it. Batch i draws from a counter-based generator (Philox, Salmon et al. 2011) keyed by the seed whose counter
starts at i: it is a pure function of (seed, i), the same for every model and after every restart.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data import cache_builder, tokenizer
from ablatrix.trainer.data.corpus import Lines, describe_skipped, no_documents
from ablatrix.trainer.data.corpus_files import describe_files, find_files, is_flat
from ablatrix.trainer.data.flat_bin import FlatStore
from ablatrix.trainer.data.formats import detect
from ablatrix.trainer.data.on_the_fly import GrowingStore
from ablatrix.trainer.data.text_source import Source
from ablatrix.trainer.data.token_cache import Cache
from ablatrix.trainer.data.token_store import SCAN, CompleteStore, TokenStore
from ablatrix.trainer.rundir.cpus import allotted_cores
from ablatrix.trainer.rundir.errors import DataError

logger = logging.getLogger(__name__)

WAIT_BYTES = 64 << 20  # a file up to this size is tokenised before the first step, in seconds
BEGINNING = 1 << 20  # bytes of a large corpus that are checked before anything is queued
ENOUGH = 0.5  # share of the tokens that can be drawn; under it there is a warning
MOST_SKIPPED = 0.1  # share of lines whose documents may be too short without a warning
PADDING = -1  # a target that is not scored
STREAM = 0x62617463  # second word of the generator's key: batches, and nothing else that a seed decides


def open_tokens(config: DataConfig, cache_dir: Path) -> TokenStore:
    """The tokens of a corpus, from the cache that all runs share.

    Where it is missing it is built first, unless the file is so large that this would keep the run waiting: then the
    cache is built in the background, and what is drawn is tokenised meanwhile. Raises DataError where the file cannot
    be used, OfflineCacheError where the tokenizer is missing.
    """
    if is_flat(find_files(config)[0]):
        return FlatStore(config, tokenizer.find(config.tokenizer, cache_dir))
    cache = Cache.of(config, cache_dir)
    meta = cache.meta()
    if meta is None and not cache.folder.is_relative_to(cache_dir):
        logger.warning(f"{cache_dir}: cannot be written; tokens are kept in {cache.folder.parents[1]}")
    if meta is None and cache.size > WAIT_BYTES and all(detect(path).direct for path in cache.files):
        cache_builder.prepare(cache)
        print(f"{cache.name}: tokenising what is drawn; its token cache is built in the background", file=sys.stderr)
        return GrowingStore(cache, partial(cache_builder.start_background, config, cache_dir))
    return CompleteStore(cache.folder, meta or cache_builder.build(config, cache_dir, allotted_cores()))


def split_lines(store: TokenStore, config: DataConfig) -> range:
    """The lines of the documents that are trained on. Raises DataError where there is none."""
    boundary = store.first_held_out(config.test_size)
    if config.split == "train":
        return range(boundary)
    if not config.test_size:
        raise DataError("data.split is test, but data.test_size is 0: no document is held out")
    return range(boundary, store.n_lines)


@dataclass(frozen=True)
class Usage:
    """How much of a corpus the batches can draw. documents, tokens: trained on; usable_*: that fill a window."""

    documents: int
    tokens: int
    usable_documents: int
    usable_tokens: int

    @classmethod
    def of(cls, store: TokenStore, config: DataConfig) -> Usage:
        """Count from a complete store; needs one pass over its offsets."""
        lines, totals = split_lines(store, config), np.zeros(4, dtype=np.int64)
        for start in range(lines.start, lines.stop, SCAN):
            counts = np.diff(store.offsets[start : min(lines.stop, start + SCAN) + 1])
            usable = counts[counts > config.block_size]
            totals += [np.count_nonzero(counts), counts.sum(), len(usable), usable.sum()]
        return cls(*map(int, totals))


def describe_usage(store: TokenStore, config: DataConfig) -> tuple[str, list[str]]:
    """Return a sentence about what a complete corpus holds, and warnings about what is never trained on."""
    usage, length = Usage.of(store, config), config.block_size + 1
    if isinstance(store, FlatStore):
        return f"{store.name}: {usage.tokens:,} tokens to train on, stored as {store.dtype.name}", []
    share = usage.usable_tokens / max(usage.tokens, 1)
    text = (
        f"{store.name}: {usage.documents:,} documents of {usage.tokens:,} tokens to train on; "
        f"{usage.usable_documents:,} of them, with {share:.1%} of the tokens, fill a window of {length} tokens"
    )
    warnings = []
    if share < ENOUGH:
        warnings.append(
            f"{store.name}: only {usage.usable_documents:,} of {usage.documents:,} documents ({share:.1%} of the "
            f"tokens) have the {length} tokens of a window, and the others are never trained on; lower "
            "data.block_size, or join short documents"
        )
    skipped = describe_skipped(store.name, store.n_lines, store.skipped, store.first_skipped)
    left_out = sum(store.skipped.values()) - store.skipped.get("blank", 0)
    if skipped and (left_out > MOST_SKIPPED * store.n_lines or not {"blank", "too_short"} >= store.skipped.keys()):
        warnings.append(skipped)
    elif skipped:
        text += f"; {skipped.partition(': ')[2]}"
    return text, warnings


def check_beginning(config: DataConfig) -> list[str]:
    """Return a warning if many of the first lines of a large corpus are left out.

    Raises DataError where none of them is a document.
    """
    files = find_files(config)
    source = Source([detect(path) for path in files])
    starts = np.flatnonzero(np.frombuffer(source.read(0, BEGINNING), dtype=np.uint8) == ord("\n")) + 1
    lines = Lines(source, np.concatenate([[0], starts]), config.text_key)
    skipped: dict[str, int] = {}
    first: dict[str, str] = {}
    for line in range(len(lines)):
        _, reason = lines.text(line)
        if reason:
            skipped[reason] = skipped.get(reason, 0) + 1
            first.setdefault(reason, lines.explain(line, reason))
    name = f"{describe_files(config, files)} (its beginning)"
    if len(lines) and sum(skipped.values()) == len(lines):
        raise no_documents(name, skipped, config.text_key, lines)
    few = sum(skipped.values()) - skipped.get("blank", 0) <= MOST_SKIPPED * len(lines)
    return [] if few else [describe_skipped(name, len(lines), skipped, first)]


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
        key, counter = np.array([self.seed, STREAM], np.uint64), np.array([0, 0, i, 0], np.uint64)
        stream = np.random.Philox(key=key, counter=counter)
        while True:
            fractions = (stream.random_raw(4 * self.batch_size) >> np.uint64(11)) * 2.0**-53  # [0, 1), exact
            lines = self.lines.start + (fractions[::2] * len(self.lines)).astype(np.int64)
            starts = fractions[1::2].tolist()
            for k, count in self.store.accepted(lines, self.length):
                yield int(lines[k]), int(starts[k] * (count - self.length + 1))


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
    block, first = config.block_size, store.first_held_out(config.test_size)
    held_out = range(first, store.n_lines) if config.test_size else range(0)
    counts = np.array([store.count(line) for line in held_out], dtype=np.int64)
    targets = np.maximum(counts - 1, 0)
    ends = np.cumsum(-(-targets // block))  # windows up to the end of each document
    chosen = np.arange(ends[-1] if len(ends) else 0)
    if targets.sum() > eval_tokens:
        keep = max(1, eval_tokens // block)
        chosen = (2 * np.arange(keep) + 1) * len(chosen) // (2 * keep)
    x = np.zeros((len(chosen), block), dtype=np.int64)
    y = np.full((len(chosen), block), PADDING, dtype=np.int64)
    for row, window in enumerate(chosen):
        k = int(np.searchsorted(ends, window, side="right"))
        start = int(window - (ends[k] - -(-targets[k] // block))) * block
        piece = store.read(first + k, start, min(start + block + 1, int(counts[k])))
        x[row, : len(piece) - 1], y[row, : len(piece) - 1] = piece[:-1], piece[1:]
    if targets.sum() > eval_tokens:
        y[:, eval_tokens:] = PADDING  # a single window may hold more than was asked for
    return x, y
