"""Text of a corpus as one sequence of bytes: the lines of all its files, one file after another. Torch-free."""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from ablatrix.trainer.data.decoders import CHUNK, explain_damage
from ablatrix.trainer.data.formats import TextFile, detect

OPEN_FILES = 64


def read_at(descriptor: int, size: int, start: int) -> bytes:
    """Return `size` bytes from `start`, fewer only at the end of the file; one pread call returns at most 2 GiB."""
    data = os.pread(descriptor, size, start)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), start + len(data))):
        data += more
    return data


class Source:
    """Random access to the bytes of a corpus, decompressed and in UTF-8. Thread-safe.

    Files that are streams (see TextFile.direct) are cheap to read forward; reading backward restarts them. A line break
    is inserted where a file ends without one and another file follows. Raises DataError for corrupt files.
    """

    def __init__(self, files: Sequence[TextFile], starts: Sequence[int] = (0,)) -> None:
        """Open the files. starts: offsets of the files, as far as known from an earlier pass."""
        self.files = tuple(files)
        self.starts = list(starts)
        self._open: OrderedDict[int, _Direct | _Stream] = OrderedDict()
        self._lock = threading.Lock()
        self._part(0)

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`, fewer only at the end of the corpus."""
        pieces: list[bytes] = []
        while size > 0:
            k = bisect_right(self.starts, start) - 1
            piece = self._part(k).read(start - self.starts[k], size)
            if piece:
                pieces.append(piece)
                start, size = start + len(piece), size - len(piece)
            elif k + 1 == len(self.files):
                break
            else:
                self._find_next_start(k)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _find_next_start(self, k: int) -> None:
        """Record where the file after file k starts."""
        size = self._part(k).size()
        with self._lock:
            if len(self.starts) == k + 1:
                self.starts.append(self.starts[k] + size)

    def _part(self, k: int) -> _Direct | _Stream:
        with self._lock:
            part = self._open.pop(k, None)
            if part is None:
                file = self.files[k]
                part = (_Direct if file.direct else _Stream)(file, last=k + 1 == len(self.files))
            self._open[k] = part
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)  # closed once no thread reads it
            return part

    def locate(self, offset: int) -> int:
        """Return the index of the file that contains this byte."""
        return bisect_right(self.starts, offset) - 1

    def close(self) -> None:
        """Close the files."""
        for part in self._open.values():
            part.file.close()


def open_source(files: Sequence[Path], whole_texts: bool) -> Source:
    """Return the text of these files, detecting their formats. Raises DataError if a file contains no documents.

    whole_texts: a plain text file is one document.
    """
    return Source([detect(path, whole_texts) for path in files])


class _Direct:
    """A file whose bytes are the text itself."""

    def __init__(self, file: TextFile, last: bool) -> None:
        self.file = file.open_raw()
        self._bytes = os.fstat(self.file.fileno()).st_size
        ends_well = last or not self._bytes or os.pread(self.file.fileno(), 1, self._bytes - 1) == b"\n"
        self._end = b"" if ends_well else b"\n"

    def size(self) -> int:
        return self._bytes + len(self._end)

    def read(self, start: int, size: int) -> bytes:
        if self._end and start >= self._bytes:
            return self._end[start - self._bytes :]
        return read_at(self.file.fileno(), size, start)


class _Stream:
    """A file whose text must be decoded from the beginning."""

    def __init__(self, file: TextFile, last: bool) -> None:
        self.file = file.open_raw()
        self._text, self._last = file, last
        self._lock = threading.Lock()
        self._rewind()

    def _rewind(self) -> None:
        self._stream: BinaryIO = self._text.unwrapped(self.file)
        self._position = 0
        self._tail = b"\n"  # the last byte that was read

    def size(self) -> int:
        with self._lock:
            while self._next(CHUNK):
                pass
            return self._position

    def read(self, start: int, size: int) -> bytes:
        with self._lock:
            if start < self._position:
                self._rewind()
            while self._position < start:
                if not self._next(min(CHUNK, start - self._position)):
                    return b""
            return self._next(size)

    def _next(self, size: int) -> bytes:
        with explain_damage(self._text.path):
            data = self._stream.read(size)
        if not data and not self._last and self._tail != b"\n":
            data = b"\n"
        self._tail = data[-1:] or self._tail
        self._position += len(data)
        return data
