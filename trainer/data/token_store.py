"""Tokens of a corpus by line number: the interface from which batches are drawn, and the complete token cache.

Other implementations: a cache that is still being built (on_the_fly), flat files of token ids (flat_bin). Batches do
not depend on the implementation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydantic import BaseModel

from ablatrix.trainer.data.text_source import read_at
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.errors import DataError

SCAN = 1 << 20  # lines processed at a time


class Meta(BaseModel):
    """meta.json of a complete token cache."""

    format: int
    source: str  # name of the corpus, for messages
    tokenizer: str
    vocab_size: int
    dtype: str
    lines: int
    documents: int
    tokens: int
    skipped: dict[str, int]  # number of skipped lines by reason
    first_skipped: dict[str, str] = {}  # location of the first line by reason, and what is wrong with it
    fingerprint: str
    tokens_sha256: str


class TokenStore(ABC):
    """The tokens of a corpus by line number; lines that are not documents have none.

    skipped: number of skipped lines by reason; first_skipped: description of the first skipped line by reason;
    fingerprint: SHA-256 of the content (see trainer.data.fingerprints).
    """

    name: str  # name of the corpus, for messages
    vocab_size: int
    n_lines: int
    n_documents: int
    skipped: dict[str, int]
    first_skipped: dict[str, str]
    fingerprint: str
    dtype: np.dtype[Any]

    @property
    def complete(self) -> bool:
        """True if all lines are tokenized."""
        return True

    @property
    @abstractmethod
    def starts(self) -> np.ndarray:
        """Start of each line, and the end of the corpus, (n_lines + 1,) uint64, in bytes (for flat files, in ids)."""

    @abstractmethod
    def accepted(self, lines: np.ndarray, length: int | np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (k, number of tokens in lines[k]) for the lines with at least `length` tokens, in order.

        length: one number, or one per line.
        """

    @abstractmethod
    def read(self, line: int, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop) of a line."""

    @abstractmethod
    def count(self, line: int) -> int:
        """Return the number of tokens in a line."""

    def counts(self, lines: range) -> np.ndarray:
        """Return the number of tokens in each of these lines, int64."""
        return np.array([self.count(line) for line in lines], dtype=np.int64)

    def document(self, line: int) -> np.ndarray:
        """Return all tokens of a line."""
        return self.read(line, 0, self.count(line))

    def first_held_out(self, test_size: float) -> int:
        """Return the first held-out line. test_size: number of documents at the end, or a share of the lines.

        Raises DataError if no other document is left.
        """
        if not isinstance(test_size, float):
            return self.first_of_last(test_size)
        first = self.n_lines - count_held_out(test_size, self.n_lines)
        if first <= 0:
            raise nothing_left(self.name, test_size, self.n_documents)
        return first

    @abstractmethod
    def first_of_last(self, documents: int) -> int:
        """Return the line at which the last `documents` documents start. Raises DataError if no other is left."""

    @abstractmethod
    def require(self, lines: range, length: int) -> None:
        """Raise DataError unless one of these lines has `length` tokens."""


class CompleteStore(TokenStore):
    """A complete token cache."""

    _offsets: np.ndarray
    _file: BinaryIO

    def __init__(self, folder: Path, meta: Meta) -> None:
        self.folder, self.name = folder, meta.source
        self.vocab_size, self.n_lines, self.n_documents = meta.vocab_size, meta.lines, meta.documents
        self.skipped, self.first_skipped = meta.skipped, meta.first_skipped
        self.fingerprint = meta.fingerprint
        self.dtype = np.dtype(meta.dtype).newbyteorder("<")
        self._path = folder / "tokens.bin"
        offsets = map_offsets(folder / "offsets.npy", self.n_lines)
        if offsets is None:
            raise damaged(folder / "offsets.npy")
        self._offsets = offsets
        self._file = self._path.open("rb", buffering=0)  # stays open for the lifetime of the store

    @property
    def tokens(self) -> np.ndarray:
        """All ids (n_tokens,), concatenated, as a memmap. Touched pages count as this process's memory."""
        return np.memmap(self._path, dtype=self.dtype, mode="r")

    @property
    def offsets(self) -> np.ndarray:
        """Offsets (n_lines + 1,) int64: line i is tokens[offsets[i]:offsets[i + 1]]."""
        return self._offsets

    @cached_property
    def starts(self) -> np.ndarray:
        path = self.folder / "lines.u64"
        try:
            return np.asarray(np.memmap(path, dtype="<u8", mode="r", shape=(self.n_lines + 1,)))
        except (OSError, ValueError):
            raise damaged(path) from None

    def accepted(self, lines: np.ndarray, length: int | np.ndarray) -> Iterator[tuple[int, int]]:
        counts = self._offsets[lines + 1] - self._offsets[lines]
        which = np.flatnonzero(counts >= length)
        return zip(which.tolist(), counts[which].tolist(), strict=True)

    def read(self, line: int, start: int, stop: int) -> np.ndarray:
        # read from the file instead of the memmap, so that memory does not grow with the corpus
        begin = int(self._offsets[line]) + start
        return read_tokens(self._file.fileno(), begin, stop - start, self.dtype)

    def count(self, line: int) -> int:
        return int(self._offsets[line + 1] - self._offsets[line])

    def counts(self, lines: range) -> np.ndarray:
        return np.diff(self._offsets[lines.start : lines.stop + 1])

    def first_of_last(self, documents: int) -> int:
        if documents >= self.n_documents:
            raise nothing_left(self.name, documents, self.n_documents)
        stop, missing = self.n_lines, documents
        while missing:
            start = max(0, stop - SCAN)
            found = start + np.flatnonzero(np.diff(self._offsets[start : stop + 1]))
            if len(found) >= missing:
                return int(found[-missing])
            stop, missing = start, missing - len(found)
        return self.n_lines

    def require(self, lines: range, length: int) -> None:
        longest = 0
        for start in range(lines.start, lines.stop, SCAN):
            longest = max(longest, int(self.counts(range(start, min(lines.stop, start + SCAN))).max()))
            if longest >= length:
                return
        raise too_short(self.name, longest, length)


def map_offsets(path: Path, n_lines: int) -> np.ndarray | None:
    """Map the offsets (n_lines + 1,) int64 in an offsets.npy; None if the file is missing or corrupt."""
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")  # rejects object arrays
    except (OSError, ValueError):
        return None
    whole = mapped.dtype == np.dtype("<i8") and mapped.shape == (n_lines + 1,)
    return np.asarray(mapped) if whole else None  # indexing a memmap takes three times as long


def damaged(path: Path) -> DataError:
    """Return the error for a token cache file that is missing or has the wrong size."""
    return DataError(f"{path}: corrupt; remove the folder {path.parent} and start the run again to rebuild it")


def read_tokens(descriptor: int, start: int, count: int, dtype: np.dtype[Any], skip: int = 0) -> np.ndarray:
    """Return `count` tokens, starting at token `start`, from a file whose tokens begin after `skip` bytes."""
    size = count * dtype.itemsize
    data = read_at(descriptor, size, skip + start * dtype.itemsize)
    if len(data) < size:
        raise DataError("the token cache was truncated while it was in use; start the run again")
    return np.frombuffer(data, dtype=dtype)


def too_short(name: str, longest: int, length: int) -> DataError:
    """Return the error for a split in which no document fills a window of `length` tokens."""
    return DataError(
        f"{name}: the longest document has {count(longest, 'token')}, but data.block_size {length - 1} needs {length}; "
        f"set data.block_size to at most {max(longest - 1, 1)}"
    )


def count_held_out(size: float, total: int) -> int:
    """Return how many of `total` are held out: `size`, or a share of at least one if `size` is a float."""
    return max(1, round(size * total)) if isinstance(size, float) else size


def nothing_left(name: str, test_size: float, documents: int) -> DataError:
    """Return the error for a corpus whose documents are all held out."""
    return DataError(
        f"{name}: data.test_size is {test_size}, but the corpus has only {count(documents, 'document')}; "
        f"set it to at most {documents - 1}, or to a share such as 0.1"
    )
