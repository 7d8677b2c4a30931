"""Where batches get their tokens from, by line number of the corpus.

A complete token cache here, one that is still being built (growing.py), or a flat file of tokens (flatfile.py). All
answer alike, so that a batch does not depend on which one it came from.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ablatrix.trainer.rundir.errors import DataError

SCAN = 1 << 20  # lines looked at in one go


class TokenStore(ABC):
    """The tokens of a corpus, by line number; lines that are no document have none.

    vocab_size, n_lines, n_documents; skipped: lines left out, by reason; first_skipped: what is known of the first one
    of each reason; fingerprint: SHA-256 that tells what was read.
    """

    name: str  # of the data file, for people
    vocab_size: int
    n_lines: int
    n_documents: int
    skipped: dict[str, int]
    first_skipped: dict[str, str]
    fingerprint: str
    dtype: np.dtype[Any]

    @property
    def complete(self) -> bool:
        """Whether `tokens` and `offsets` are there."""
        return True

    @property
    @abstractmethod
    def tokens(self) -> np.ndarray:
        """(n_tokens,) all ids, one document after the other: a memmap. Touched pages count as this process's memory."""

    @property
    @abstractmethod
    def offsets(self) -> np.ndarray:
        """(n_lines + 1,) int64: line i is tokens[offsets[i]:offsets[i + 1]]."""

    @abstractmethod
    def accepted(self, lines: np.ndarray, length: int) -> Iterator[tuple[int, int]]:
        """(k, tokens of lines[k]) of the lines that have at least `length` tokens, in order."""

    @abstractmethod
    def read(self, line: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a line."""

    @abstractmethod
    def count(self, line: int) -> int:
        """Number of tokens of a line."""

    def document(self, line: int) -> np.ndarray:
        """All tokens of a line."""
        return self.read(line, 0, self.count(line))

    @abstractmethod
    def first_held_out(self, test_size: int) -> int:
        """The line at which the last `test_size` documents begin. Raises DataError where no other is left."""

    @abstractmethod
    def require(self, lines: range, length: int) -> None:
        """Raises DataError unless one of these lines has `length` tokens."""


class CompleteStore(TokenStore):
    """A complete token cache."""

    _offsets: np.ndarray
    _file: BinaryIO

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder, self.name = folder, meta["source"]
        self.vocab_size, self.n_lines, self.n_documents = meta["vocab_size"], meta["lines"], meta["documents"]
        self.skipped, self.fingerprint = meta["skipped"], meta["fingerprint"]
        self.first_skipped = meta.get("first_skipped", {})
        self.dtype = np.dtype(meta["dtype"]).newbyteorder("<")
        self._path = folder / "tokens.bin"
        self._offsets = _map_offsets(folder / "offsets.npy", self.n_lines)
        self._file = open(self._path, "rb", buffering=0)  # noqa: SIM115 - lives as long as the store

    @property
    def tokens(self) -> np.ndarray:
        """(n_tokens,) all ids."""
        return np.memmap(self._path, dtype=self.dtype, mode="r")

    @property
    def offsets(self) -> np.ndarray:
        """(n_lines + 1,) int64."""
        return self._offsets

    def accepted(self, lines: np.ndarray, length: int) -> Iterator[tuple[int, int]]:
        """(k, tokens of lines[k]) of the lines that are long enough."""
        counts = self._offsets[lines + 1] - self._offsets[lines]
        which = np.flatnonzero(counts >= length)
        return zip(which.tolist(), counts[which].tolist(), strict=True)

    def read(self, line: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a line, read from the file: memory does not grow with the corpus."""
        begin = int(self._offsets[line]) + start
        return read_tokens(self._file.fileno(), begin, stop - start, self.dtype)

    def count(self, line: int) -> int:
        """Number of tokens of a line."""
        return int(self._offsets[line + 1] - self._offsets[line])

    def first_held_out(self, test_size: int) -> int:
        """The line at which the last `test_size` documents begin. Raises DataError where no other is left."""
        if test_size >= self.n_documents:
            raise nothing_left(self.name, test_size, self.n_documents)
        stop, missing = self.n_lines, test_size
        while missing:
            start = max(0, stop - SCAN)
            documents = start + np.flatnonzero(np.diff(self._offsets[start : stop + 1]))
            if len(documents) >= missing:
                return int(documents[-missing])
            stop, missing = start, missing - len(documents)
        return self.n_lines

    def require(self, lines: range, length: int) -> None:
        """Raises DataError unless one of these lines has `length` tokens."""
        longest = 0
        for start in range(lines.start, lines.stop, SCAN):
            stop = min(lines.stop, start + SCAN)
            longest = max(longest, int(np.diff(self._offsets[start : stop + 1]).max()))
            if longest >= length:
                return
        raise too_short(self.name, longest, length)


def write_offsets_header(file: BinaryIO, n_lines: int) -> None:
    """The beginning of an offsets.npy; int64 numbers follow, one more than lines."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (n_lines + 1,)})


def offsets_start(path: Path, n_lines: int) -> int | None:
    """Where the numbers of an offsets.npy of so many lines start, in bytes; None where the file is not one.

    Its header is compared, not understood: one that somebody else wrote may ask for objects, or for any size.
    """
    header = io.BytesIO()
    write_offsets_header(header, n_lines)
    start = len(header.getvalue())
    with open(path, "rb") as file:
        whole = file.read(start) == header.getvalue() and os.fstat(file.fileno()).st_size == start + 8 * (n_lines + 1)
    return start if whole else None


def _map_offsets(path: Path, n_lines: int) -> np.ndarray:
    """(n_lines + 1,) int64, not read yet. Raises DataError where the file is not one of offsets."""
    start = offsets_start(path, n_lines)
    if start is None:
        raise DataError(f"{path}: damaged; remove the folder {path.parent} and start the run again, to make it anew")
    return np.memmap(path, dtype="<i8", mode="r", offset=start, shape=(n_lines + 1,))


def read_tokens(descriptor: int, start: int, count: int, dtype: np.dtype[Any], skip: int = 0) -> np.ndarray:
    """`count` tokens from the `start`-th of a file that begins with `skip` other bytes."""
    data = os.pread(descriptor, count * dtype.itemsize, skip + start * dtype.itemsize)
    while len(data) < count * dtype.itemsize:  # one call gives 2 GiB at most
        more = os.pread(descriptor, count * dtype.itemsize - len(data), skip + start * dtype.itemsize + len(data))
        if not more:
            raise DataError("the token cache was cut off while it was in use; start the run again")
        data += more
    return np.frombuffer(data, dtype=dtype)


def too_short(name: str, longest: int, length: int) -> DataError:
    """The error for a split in which no document fills a window of `length` tokens."""
    return DataError(
        f"{name}: the longest document has {longest} tokens, but data.block_size {length - 1} needs {length}; "
        f"set data.block_size to at most {max(longest - 1, 1)}"
    )


def nothing_left(name: str, test_size: int, documents: int) -> DataError:
    """The error for a corpus whose documents are all held out."""
    return DataError(
        f"{name}: data.test_size is {test_size}, but the file has only {documents} documents; "
        f"set it to at most {documents - 1}"
    )
