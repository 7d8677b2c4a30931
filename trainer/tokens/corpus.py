"""Reading a JSONL corpus: bytes at any offset, an index of its lines, the text of a line. Free of torch.

Lines end at b"\\n" and are numbered from 0; blank ones count. A line that cannot be a document is skipped for one of
the reasons in `SKIPS`; the file as a whole is refused only where no document is left or where it is not UTF-8.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from trainer.errors import DataError, UserError
from trainer.runlog import opened

MIN_CHARACTERS = 10  # a text shorter than this is no document
CHUNK = 1 << 20  # bytes read at a time: fits the cache of a core
SAMPLES = 64  # pieces of CHUNK bytes that the fingerprint looks at
SKIPS = {
    "blank": "blank lines",
    "not_json": "lines that are not JSON",
    "not_object": "lines that are not a JSON object",
    "no_text_key": "objects without the text key",
    "not_string": "objects whose text is not a string",
    "too_short": f"documents under {MIN_CHARACTERS} characters",
}


def is_compressed(path: Path) -> bool:
    """Whether a corpus is a compressed stream, by its name."""
    return path.suffix in (".gz", ".zst")


class Source:
    """The bytes of a corpus at any offset, decompressed where the name ends in .gz or .zst. Safe between threads.

    A compressed file is a stream: reading forward is cheap, reading backward starts it anew. Raises DataError where
    the file is missing, unreadable or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            self._file: BinaryIO = opened(self.path, buffering=0)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        self._stream: BinaryIO | None = None
        self._position = 0  # of the stream
        if is_compressed(self.path):
            self._stream = self._decompress()

    def _decompress(self) -> BinaryIO:
        self._file.seek(0)
        self._position = 0
        return open_gzip(self._file) if self.path.suffix == ".gz" else open_zstd(self._file, self.path)

    def read(self, start: int, size: int) -> bytes:
        """Up to `size` bytes from `start`; fewer at the end of the file only."""
        if self._stream is None:
            return self._pread(start, size)
        with self._lock, _Damage(self.path):
            if start < self._position:
                self._stream = self._decompress()
            while self._position < start:
                skipped = self._stream.read(min(CHUNK, start - self._position))
                if not skipped:
                    return b""
                self._position += len(skipped)
            data = self._stream.read(size)
            self._position += len(data)
            return data

    def _pread(self, start: int, size: int) -> bytes:
        data = os.pread(self._file.fileno(), size, start)
        while len(data) < size:  # one call gives 2 GiB at most, and less on some file systems
            more = os.pread(self._file.fileno(), size - len(data), start + len(data))
            if not more:
                break
            data += more
        return data

    def sample(self) -> Iterator[bytes]:
        """Up to SAMPLES evenly spaced pieces of the file as it lies on the disk; all of a small one."""
        size = os.fstat(self._file.fileno()).st_size
        pieces = -(-size // CHUNK)
        for k in range(min(pieces, SAMPLES)):
            yield self._pread(k * pieces // min(pieces, SAMPLES) * CHUNK, CHUNK)

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def open_gzip(file: BinaryIO) -> BinaryIO:
    """The decompressed stream of a gzip file, of one or several members."""
    return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=file), CHUNK))


def open_zstd(file: BinaryIO, path: Path) -> BinaryIO:
    """The decompressed stream of a Zstandard file. Raises UserError where the package for it is missing."""
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{path}: reading .zst needs one more package: pip install zstandard") from None
    return cast(BinaryIO, io.BufferedReader(_ZstdStream(file, zstandard.ZstdDecompressor()), CHUNK))


class _ZstdStream(io.RawIOBase):
    """Frames one after the other. zstandard's own reader takes a file that is cut off for one that ends."""

    def __init__(self, file: BinaryIO, decompressor: Any) -> None:
        self._file, self._decompressor = file, decompressor
        self._frame = decompressor.decompressobj()
        self._begun = False  # whether the frame has got any bytes
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            raw = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._begun = self._decompressor.decompressobj(), False
            raw = raw or self._file.read(CHUNK)
            if not raw:
                if self._begun:
                    raise EOFError("the last frame is cut off")
                return 0
            self._begun = True
            self._ready = self._frame.decompress(raw)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


class _Damage:
    """Turns a decompressor's complaint into a DataError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)) or type(error).__name__ == "ZstdError":
            raise DataError(f"{self.path}: damaged or cut short: {error}; copy it anew") from None


def scan_lines(source: Source, write: Callable[[np.ndarray], object], progress: Callable[[int], object]) -> int:
    """Find where lines start, in one pass over the file and in constant memory.

    write: called with arrays of offsets, in order: the start of every line, then the end of the file.
    progress: called with the number of bytes read. Returns the number of lines.
    """
    size = lines = 0
    fresh = True  # a line starts at `size`, if a byte follows
    while chunk := source.read(size, CHUNK):
        starts = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n")) + (size + 1)
        if fresh:
            starts = np.concatenate([[size], starts])
        size += len(chunk)
        fresh = chunk.endswith(b"\n")
        starts = starts[:-1] if fresh else starts
        write(starts)
        lines += len(starts)
        progress(size)
    write(np.array([size]))
    return lines


def fingerprint(source: Source, lengths: Iterator[np.ndarray], *salt: str) -> str:
    """SHA-256 that tells corpora apart without reading all of a large one.

    Over the length of every line, evenly spaced pieces of the file (all of it up to 64 MiB) and `salt`.
    """
    digest = hashlib.sha256("\0".join(salt).encode())
    for part in lengths:
        digest.update(part.tobytes())
    for piece in source.sample():
        digest.update(piece)
    return digest.hexdigest()


def document_text(line: bytes, text_key: str, first: bool = False) -> tuple[str | None, str]:
    """(text, "") of a line that is a document, else (None, reason), a key of SKIPS.

    first: the line is the file's first one and may begin with a byte order mark. Raises UnicodeDecodeError.
    """
    line = line.strip(b" \t\r\n")
    if not line:
        return None, "blank"
    try:
        record = json.loads(line.decode("utf-8-sig" if first else "utf-8"))
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError):
        return None, "not_json"
    if not isinstance(record, dict):
        return None, "not_object"
    if text_key not in record:
        return None, "no_text_key"
    text = record[text_key]
    if not isinstance(text, str):
        return None, "not_string"
    return (text, "") if len(text) >= MIN_CHARACTERS else (None, "too_short")


class Lines:
    """The documents of a corpus, by line number."""

    def __init__(self, source: Source, starts: np.ndarray, text_key: str) -> None:
        self.source, self.starts, self.text_key = source, starts, text_key

    def __len__(self) -> int:
        return len(self.starts) - 1

    def size(self, line: int) -> int:
        """Bytes of a line. A text has no more bytes than its line, and no more tokens than bytes."""
        return int(self.starts[line + 1]) - int(self.starts[line])

    def text(self, line: int) -> tuple[str | None, str]:
        """(text, "") or (None, reason) of one line. Raises DataError where it is not UTF-8."""
        return self.parse(line, self.source.read(int(self.starts[line]), self.size(line)))

    def parse(self, line: int, raw: bytes) -> tuple[str | None, str]:
        """As `text`, from bytes that are already read."""
        try:
            return document_text(raw, self.text_key, first=line == 0)
        except UnicodeDecodeError as error:
            offset = int(self.starts[line]) + error.start
            raise DataError(
                f"{self.source.path}: line {line + 1} is not UTF-8 (byte {error.object[error.start]:#04x} near offset "
                f"{offset}): convert the file, for instance with iconv -f LATIN1 -t UTF-8"
            ) from None


def no_documents(path: Path, skipped: dict[str, int], text_key: str, lines: Lines) -> DataError:
    """The error for a corpus without a single document, telling why."""
    if not skipped:
        return DataError(f"{path}: the file is empty; it must hold one JSON object per line")
    reasons = ", ".join(f"{count} {SKIPS[reason]}" for reason, count in skipped.items())
    message = f"{path}: holds no document ({reasons})"
    if "no_text_key" in skipped:
        seen = keys_seen(lines)
        message += f"; there is no key {text_key!r}, but {', '.join(map(repr, seen))}: set data.text_key"
    return DataError(message)


def keys_seen(lines: Lines, limit: int = 1000) -> list[str]:
    """The keys of the first objects, in order of appearance; at most ten."""
    seen: dict[str, None] = {}
    for line in range(min(len(lines), limit)):
        try:
            record = json.loads(lines.source.read(int(lines.starts[line]), lines.size(line)))
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            seen |= dict.fromkeys(record)
    return list(seen)[:10]
