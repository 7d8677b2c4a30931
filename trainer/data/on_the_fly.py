"""Token store for a corpus whose cache is still being built: tokenizes what is drawn, and yields the same batches."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import lru_cache
from subprocess import Popen
from typing import TYPE_CHECKING

import numpy as np

from ablatrix.trainer.data import cache_builder
from ablatrix.trainer.data.corpus import Lines, no_documents
from ablatrix.trainer.data.encoder import Encoder
from ablatrix.trainer.data.shards import open_shard
from ablatrix.trainer.data.token_store import CompleteStore, TokenStore, nothing_left, read_tokens, too_short

if TYPE_CHECKING:
    from ablatrix.trainer.data.token_cache import Cache

KEPT_BYTES = 128 << 20  # memory for documents that were tokenized when drawn
ENTRY_BYTES = 256  # overhead of an array object and its dictionary entry
OPEN_SHARDS = 64
LOOK_SECONDS = 2.0  # between two checks of the cache's state
RESTART_SECONDS = 60.0  # between two attempts to start workers, if other runs of the job already have workers


class GrowingStore(TokenStore):
    """Read finished shards, tokenize (and keep) lines that are in none, and read the cache once it is complete.

    n_documents and skipped count what is known so far. Thread-safe.
    """

    def __init__(self, cache: Cache, start_workers: Callable[[], list[Popen[bytes]]] | None = None) -> None:
        """Open the store. start_workers: starts the processes that complete the cache; they end with this store."""
        index = cache.index()
        self.name, self.folder, self.vocab_size = cache.name, cache.folder, cache.tokenizer.vocab_size
        self.n_lines, self.fingerprint, self.dtype = index.lines, index.fingerprint, cache.dtype
        self.n_documents, self.skipped, self.first_skipped = self.n_lines, {}, {}
        self._cache, self._lines, self._encoder = cache, cache.lines(), Encoder(cache.tokenizer)
        self._shard_bytes = index.shard_bytes
        self._kept, self._shards = _Kept(), _Shards(cache, self._lines)
        self._whole: CompleteStore | None = None
        self._looked = -LOOK_SECONDS
        self._not_documents: set[int] = set()
        self._held_out: dict[int, int] = {}
        self._lock = threading.Lock()
        self._builders = _Builders(self.name, start_workers)
        weakref.finalize(self, self._builders.stop)

    @property
    def complete(self) -> bool:
        return self._look() is not None

    @property
    def starts(self) -> np.ndarray:
        return self._lines.starts

    def accepted(self, lines: np.ndarray, length: int | np.ndarray) -> Iterator[tuple[int, int]]:
        whole = self._look()
        if whole is not None:
            yield from whole.accepted(lines, length)
            return
        lengths = np.broadcast_to(length, lines.shape).tolist()
        for k, line in enumerate(lines.tolist()):  # lazily: only lines that the caller gets to are tokenized
            if self._lines.size(line) >= lengths[k]:  # a token is at least one byte
                count = self.count(line)
                if count >= lengths[k]:
                    yield k, count

    def count(self, line: int) -> int:
        return self._find(line).count(line)

    def read(self, line: int, start: int, stop: int) -> np.ndarray:
        return self._find(line).read(line, start, stop)

    def _find(self, line: int) -> CompleteStore | _Shard | _Document:
        """Return the object that has a line's tokens, tokenizing the line if there is none yet."""
        shard_number = int(self._lines.starts[line]) // self._shard_bytes
        return self._look() or self._kept.get(line) or self._shards.open(shard_number) or self._tokenize(line)

    def first_of_last(self, documents: int) -> int:
        """Like `CompleteStore.first_of_last`, but by reading the corpus backward, one document further than needed."""
        found = self._held_out.get(documents)
        if found is not None:
            return found
        boundary, seen = self.n_lines, 0
        skipped: dict[str, int] = {}
        for line in range(self.n_lines - 1, -1, -1):
            text, reason = self._lines.text(line)
            if text is None:
                skipped[reason] = skipped.get(reason, 0) + 1
                continue
            seen += 1
            if seen > documents:
                return self._held_out.setdefault(documents, boundary)
            boundary = line
        if not seen:
            raise no_documents(self._cache.name, skipped, self._cache.text_key, self._lines)
        raise nothing_left(self.name, documents, seen)

    def require(self, lines: range, length: int) -> None:
        longest = 0
        for line in lines:  # the first few lines are nearly always enough
            longest = max(longest, self.count(line) if self._lines.size(line) >= min(length, longest + 1) else 0)
            if longest >= length:
                return
        raise too_short(self.name, longest, length)

    def _tokenize(self, line: int) -> _Document:
        text, reason = self._lines.text(line)
        if text is None:
            with self._lock:
                if line not in self._not_documents:
                    self._not_documents.add(line)
                    self.skipped[reason] = self.skipped.get(reason, 0) + 1
                    self.n_documents -= 1
            tokens = np.zeros(0, dtype=self.dtype)
        else:
            tokens = self._encoder.encode(text)
        return self._kept.put(line, tokens)

    def _look(self) -> CompleteStore | None:
        """Return the complete cache if it exists, checking the disk at most every LOOK_SECONDS."""
        if self._whole is None and time.monotonic() - self._looked >= LOOK_SECONDS:
            with self._lock:
                self._looked = time.monotonic()
                meta = self._cache.meta()
                if meta is None:
                    self._shards.look()
                    self._builders.look()
                elif self._whole is None:
                    whole = CompleteStore(self._cache.folder, meta)
                    self.n_documents, self.skipped = whole.n_documents, whole.skipped
                    self.first_skipped = whole.first_skipped
                    self._whole = whole
                    self._kept.clear()
                    self._builders.stop()
        return self._whole


class _Document:
    """The tokens of one line, in memory."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def count(self, line: int) -> int:
        return len(self.tokens)

    def read(self, line: int, start: int, stop: int) -> np.ndarray:
        return self.tokens[start:stop]


class _Kept:
    """The most recently tokenized documents, up to KEPT_BYTES."""

    def __init__(self) -> None:
        self._documents: OrderedDict[int, _Document] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, line: int) -> _Document | None:
        with self._lock:
            document = self._documents.get(line)
            if document is not None:
                self._documents.move_to_end(line)
            return document

    def put(self, line: int, tokens: np.ndarray) -> _Document:
        with self._lock:
            if line not in self._documents:
                self._documents[line] = _Document(tokens)
                self._bytes += tokens.nbytes + ENTRY_BYTES
            document = self._documents[line]
            while self._bytes > KEPT_BYTES and len(self._documents) > 1:
                self._bytes -= self._documents.popitem(last=False)[1].tokens.nbytes + ENTRY_BYTES
            return document

    def clear(self) -> None:
        with self._lock:
            self._documents.clear()
            self._bytes = 0


class _Shard:
    """A finished shard, open for reading."""

    def __init__(self, cache: Cache, lines: range, number: int) -> None:
        self._first, self._dtype = lines.start, cache.dtype
        self._file, counts, _ = open_shard(cache.shard_file(number), cache.dtype)
        self._offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._skip = self._file.tell()

    def count(self, line: int) -> int:
        k = line - self._first
        return int(self._offsets[k + 1] - self._offsets[k])

    def read(self, line: int, start: int, stop: int) -> np.ndarray:
        begin = int(self._offsets[line - self._first]) + start
        return read_tokens(self._file.fileno(), begin, stop - start, self._dtype, self._skip)


class _Shards:
    """The finished shards of a cache; the most recently used ones are kept open."""

    def __init__(self, cache: Cache, lines: Lines) -> None:
        self._cache = cache
        self._done: set[int] = set()
        self._open = lru_cache(OPEN_SHARDS)(lambda number: _Shard(cache, cache.shard_lines(lines, number), number))

    def look(self) -> None:
        """Update the set of finished shards."""
        with contextlib.suppress(FileNotFoundError):  # the shards were joined: the cache will soon be complete
            self._done = self._cache.shards_done()

    def open(self, number: int) -> _Shard | None:
        """Return a shard, None if it is not finished."""
        if number in self._done:
            with contextlib.suppress(FileNotFoundError):
                return self._open(number)
        return None


class _Builders:
    """Worker processes that build a cache during a run."""

    def __init__(self, name: str, start: Callable[[], list[Popen[bytes]]] | None) -> None:
        self._name, self._start = name, start
        self._workers: list[Popen[bytes]] = []
        self._started = -RESTART_SECONDS

    def look(self) -> None:
        """Start workers if there are none; if a worker has failed, report it and start no more."""
        for worker in [worker for worker in self._workers if worker.poll() is not None]:
            self._workers.remove(worker)
            message = worker.stderr.read().decode("utf-8", "replace").strip() if worker.stderr else ""
            cache_builder.stop_worker(worker)
            if worker.returncode not in (0, cache_builder.EXIT_ENOUGH):
                reason = message.splitlines()[-1] if message else f"exit code {worker.returncode}"
                print(f"{self._name}: this job builds no token cache: {reason}", file=sys.stderr, flush=True)
                self._start = None
        if self._start is not None and not self._workers and time.monotonic() - self._started > RESTART_SECONDS:
            self._started = time.monotonic()
            self._workers = self._start()

    def stop(self) -> None:
        """Stop all workers."""
        self._start = None
        for worker in self._workers:
            cache_builder.stop_worker(worker)
        self._workers.clear()
