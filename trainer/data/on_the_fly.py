"""A corpus whose token cache is still being built: what is drawn is tokenised, and gives the same batches."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from subprocess import Popen

import numpy as np

from ablatrix.trainer.data import cache_builder
from ablatrix.trainer.data.corpus import Lines, no_documents
from ablatrix.trainer.data.encoder import Encoder
from ablatrix.trainer.data.token_cache import Cache, open_shard
from ablatrix.trainer.data.token_store import CompleteStore, TokenStore, nothing_left, read_tokens, too_short
from ablatrix.trainer.rundir.errors import RunError

KEPT_BYTES = 128 << 20  # of documents that were tokenised when they were drawn
OPEN_SHARDS = 64
LOOK_SECONDS = 2.0  # between two looks at how far the cache is
RESTART_SECONDS = 60.0  # between two attempts to have workers, where other runs of the job had them


class GrowingStore(TokenStore):
    """Tokenises what is drawn and keeps it; reads finished shards, and the complete cache once it is there.

    n_documents and skipped tell what is known so far. Safe between threads.
    """

    def __init__(self, cache: Cache, start_workers: Callable[[], list[Popen[bytes]]] | None = None) -> None:
        """start_workers: starts the processes that go on with the cache; they end with this store. None: nobody."""
        index = cache.index()
        self.name, self.folder, self.vocab_size = cache.name, cache.folder, cache.tokenizer.vocab_size
        self.n_lines, self.fingerprint, self.dtype = index["lines"], index["fingerprint"], cache.dtype
        self.n_documents, self.skipped, self.first_skipped = self.n_lines, {}, {}
        self._cache, self._lines, self._encoder = cache, cache.lines(), Encoder(cache.tokenizer)
        self._shard_bytes: int = index["shard_bytes"]
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
        """Whether the cache has been completed meanwhile."""
        return self._look() is not None

    @property
    def tokens(self) -> np.ndarray:
        """(n_tokens,) all ids. Raises RunError while the cache is not complete."""
        return self._completed().tokens

    @property
    def offsets(self) -> np.ndarray:
        """(n_lines + 1,) int64. Raises RunError while the cache is not complete."""
        return self._completed().offsets

    def _completed(self) -> CompleteStore:
        whole = self._look()
        if whole is None:
            raise RunError(f"{self.name}: its token cache is not complete yet")
        return whole

    def accepted(self, lines: np.ndarray, length: int) -> Iterator[tuple[int, int]]:
        """As the complete cache does, one line after the other: only what is asked for is tokenised."""
        whole = self._look()
        if whole is not None:
            yield from whole.accepted(lines, length)
            return
        for k, line in enumerate(lines.tolist()):
            if self._lines.size(line) >= length:  # a token is a byte at least
                count = self.count(line)
                if count >= length:
                    yield k, count

    def count(self, line: int) -> int:
        """Number of tokens of a line."""
        whole = self._look()
        if whole is not None:
            return whole.count(line)
        kept = self._kept.get(line)
        if kept is None:
            shard = self._shards.open(self._shard_of(line))
            if shard is not None:
                return shard.count(line)
            kept = self._tokenise(line)
        return len(kept)

    def read(self, line: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a line."""
        whole = self._look()
        if whole is not None:
            return whole.read(line, start, stop)
        kept = self._kept.get(line)
        if kept is None:
            shard = self._shards.open(self._shard_of(line))
            if shard is not None:
                return shard.read(line, start, stop)
            kept = self._tokenise(line)
        return kept[start:stop]

    def first_held_out(self, test_size: int) -> int:
        """As the complete cache does, reading the file from its end; one document more, to know that it is there."""
        found = self._held_out.get(test_size)
        if found is not None:
            return found
        boundary, documents = self.n_lines, 0
        skipped: dict[str, int] = {}
        for line in range(self.n_lines - 1, -1, -1):
            text, reason = self._lines.text(line)
            if text is None:
                skipped[reason] = skipped.get(reason, 0) + 1
                continue
            documents += 1
            if documents > test_size:
                return self._held_out.setdefault(test_size, boundary)
            boundary = line
        if not documents:
            raise no_documents(self._cache.name, skipped, self._cache.text_key, self._lines)
        raise nothing_left(self.name, test_size, documents)

    def require(self, lines: range, length: int) -> None:
        """Raises DataError unless one of these lines has `length` tokens; the first ones nearly always tell."""
        longest = 0
        for line in lines:
            longest = max(longest, self.count(line) if self._lines.size(line) >= min(length, longest + 1) else 0)
            if longest >= length:
                return
        raise too_short(self.name, longest, length)

    def _shard_of(self, line: int) -> int:
        return int(self._lines.starts[line]) // self._shard_bytes

    def _tokenise(self, line: int) -> np.ndarray:
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
        self._kept.put(line, tokens)
        return tokens

    def _look(self) -> CompleteStore | None:
        """The complete cache, if it is there; looks at the disk now and then only."""
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


class _Kept:
    """The documents tokenised last, up to KEPT_BYTES."""

    def __init__(self) -> None:
        self._documents: OrderedDict[int, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, line: int) -> np.ndarray | None:
        with self._lock:
            tokens = self._documents.get(line)
            if tokens is not None:
                self._documents.move_to_end(line)
            return tokens

    def put(self, line: int, tokens: np.ndarray) -> None:
        with self._lock:
            if line in self._documents:
                return
            self._documents[line] = tokens
            self._bytes += _weight(tokens)
            while self._bytes > KEPT_BYTES and len(self._documents) > 1:
                self._bytes -= _weight(self._documents.popitem(last=False)[1])

    def clear(self) -> None:
        with self._lock:
            self._documents.clear()
            self._bytes = 0


def _weight(tokens: np.ndarray) -> int:
    return tokens.nbytes + 256  # the array object and its place in the dictionary


class _Shard:
    """One finished shard, open for reading."""

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
    """The finished shards of a cache, the last used ones open."""

    def __init__(self, cache: Cache, lines: Lines) -> None:
        self._cache, self._lines = cache, lines
        self._done: set[int] = set()
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        self._lock = threading.Lock()

    def look(self) -> None:
        """See which ones are there now."""
        with contextlib.suppress(FileNotFoundError):  # joined: the complete cache is next to be seen
            self._done = self._cache.shards_done()

    def open(self, number: int) -> _Shard | None:
        """A shard, None while it is not finished."""
        with self._lock:
            shard = self._open.pop(number, None)
            if shard is None and number in self._done:
                with contextlib.suppress(FileNotFoundError):
                    shard = _Shard(self._cache, self._cache.shard_lines(self._lines, number), number)
            if shard is not None:
                self._open[number] = shard
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            return shard


class _Builders:
    """Worker processes that build a cache while a run goes on."""

    def __init__(self, name: str, start: Callable[[], list[Popen[bytes]]] | None) -> None:
        self._name, self._start = name, start
        self._workers: list[Popen[bytes]] = []
        self._started = -RESTART_SECONDS

    def look(self) -> None:
        """Start workers where there are none; tell about one that failed, and do without from then on."""
        for worker in [worker for worker in self._workers if worker.poll() is not None]:
            self._workers.remove(worker)
            complaint = worker.stderr.read().decode("utf-8", "replace").strip() if worker.stderr else ""
            cache_builder.stop_worker(worker)
            if worker.returncode not in (0, cache_builder.EXIT_ENOUGH):
                reason = complaint.splitlines()[-1] if complaint else f"exit code {worker.returncode}"
                print(f"{self._name}: this job builds no token cache: {reason}", file=sys.stderr, flush=True)
                self._start = None
        if self._start is not None and not self._workers and time.monotonic() - self._started > RESTART_SECONDS:
            self._started = time.monotonic()
            self._workers = self._start()

    def stop(self) -> None:
        """End them all."""
        self._start = None
        for worker in self._workers:
            cache_builder.stop_worker(worker)
        self._workers.clear()
