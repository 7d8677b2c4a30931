"""Decoders for the layers around a corpus: compression, UTF-16, JSON arrays. Each layer is a stream over the next."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from ablatrix.trainer.rundir.errors import DataError, UserError
from ablatrix.trainer.rundir.program import pip_install

CHUNK = 1 << 20  # bytes read at a time: fits in a core's cache
COMPRESSED = {
    "gzip": (b"\x1f\x8b",),
    "xz": (b"\xfd7zXZ\0", b"]\0\0"),  # the second is .lzma
    "bzip2": (b"BZh",),
    "zstd": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + k]) + b"\x2a\x4d\x18" for k in range(16))),  # skippable frames
}
PARQUET = b"PAR1"
ROWS = 256  # rows of a Parquet file decoded at a time
PARAGRAPHS, WHOLE = "paragraphs", "whole"  # layers of plain text: one document per block of lines, or per file
BLANK_LINES = re.compile(r"\n(?:[ \t\r\f\v]*\n)+")
LONGEST_WINDOW = 1 << 31  # window of zstd --long=31
TO_UTF8 = "iconv -f WINDOWS-1252 -t UTF-8"
BLANKS = re.compile(r"[\s,]*")


def unwrap(stream: BinaryIO, layer: str, path: Path) -> BinaryIO:
    """Return the decoded stream of a layer.

    layer: a key of COMPRESSED, "utf-16", or a layer that is converted to JSON lines: "values" (JSON arrays and
    objects), "parquet", PARAGRAPHS or WHOLE (plain text).
    """
    if layer == "gzip":
        return _buffered(gzip.GzipFile(fileobj=stream, mode="rb"))
    if layer == "xz":
        return _buffered(lzma.LZMAFile(stream))
    if layer == "bzip2":
        return _buffered(bz2.BZ2File(stream))
    if layer == "zstd":
        return _buffered(_Pieces(_zstd_frames(stream, _zstd_decompressor(path))))
    if layer == "parquet":
        return _buffered(_Pieces(_lines_of_rows(stream, path)))
    if layer in (PARAGRAPHS, WHOLE):
        return _buffered(_Pieces(_lines_of_text(stream, layer == WHOLE)))
    if layer == "values":
        return _buffered(_Pieces(_lines_of_values(stream)))
    return _buffered(_Pieces(_to_utf8(stream, layer)))


@contextlib.contextmanager
def explain_damage(path: Path) -> Iterator[None]:
    """Turn a decoder's error into a DataError."""
    try:
        yield
    except UnicodeDecodeError as error:
        encoding, advice = error.encoding.upper(), "copy it again"
        if encoding.startswith("UTF-8"):
            advice = f"if it is Latin-1: {TO_UTF8}"
        raise DataError(f"{path}: not {encoding.removesuffix('-SIG')} text ({error.reason}); {advice}") from None
    except (EOFError, zlib.error, lzma.LZMAError, _DamagedError) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno is not None:  # from the file system; bz2 and gzip set no errno
            raise
        raise _damaged(path, error) from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: corrupt or truncated: {error}; copy it again")


class _DamagedError(Exception):
    """The data is truncated or malformed, such as a JSON array that ends too early."""


class _Pieces(io.RawIOBase):
    """A stream over the bytes that an iterator yields."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._ready = pieces, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._ready = memoryview(piece)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def _buffered(raw: Any) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(raw, CHUNK))


def _zstd_decompressor(path: Path) -> Any:
    """Return a decompressor. Raises UserError if the package is missing."""
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f"{path}: reading Zstandard needs one more package: {pip_install('zstandard')} (or unpack it with zstd -d)"
        ) from None
    return zstandard.ZstdDecompressor(max_window_size=LONGEST_WINDOW)


def _zstd_frames(stream: BinaryIO, decompressor: Any) -> Iterator[bytes]:
    """Decompress frame by frame, because zstandard's own reader accepts truncated files."""
    frame, begun, raw = decompressor.decompressobj(), False, b""
    while raw := raw or stream.read(CHUNK // 8):
        begun = True
        yield frame.decompress(raw)
        raw = b""
        if frame.eof:
            raw, begun = frame.unused_data, False
            frame = decompressor.decompressobj()
    if begun:
        raise EOFError("the last frame is cut off")


def _lines_of_rows(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield the rows of a Parquet file as JSON objects, one per line, without binary columns.

    Raises UserError if the package is missing, _DamagedError if the file is corrupt.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet needs one more package: {pip_install('pyarrow')}") from None
    try:
        table = parquet.ParquetFile(stream)
        schema = table.schema_arrow
        names = [field.name for field in schema if not pyarrow.types.is_binary(field.type)]
        for batch in table.iter_batches(ROWS, columns=names, use_threads=False):
            yield b"".join(json.dumps(row, default=str).encode() + b"\n" for row in batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        raise _DamagedError(str(error).splitlines()[0]) from None


def _lines_of_text(stream: BinaryIO, whole: bool) -> Iterator[bytes]:
    """Yield documents of plain text as JSON objects, one per line: the whole text, or blocks split by blank lines."""
    decoder, buffer = codecs.getincrementaldecoder("utf-8-sig")(), ""
    while more := _read_text(stream, decoder, CHUNK):
        buffer += more
        if not whole:
            *blocks, buffer = BLANK_LINES.split(buffer.replace("\r\n", "\n"))
            yield b"".join(map(_document, blocks))
    yield _document(buffer)


def _document(text: str) -> bytes:
    text = text.strip("\r\n")
    return json.dumps({"text": text}).encode() + b"\n" if text else b""


def _to_utf8(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    while raw := stream.read(CHUNK):
        yield decoder.decode(raw).encode()
    yield decoder.decode(b"", final=True).encode()


def _lines_of_values(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the elements of JSON arrays, and JSON values outside arrays, as one line each.

    Raises EOFError if the last one is cut off, _DamagedError if the data is not JSON.
    """
    characters, decoder = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
    buffer, at, inside, count = "", 0, False, 0
    lines: list[bytes] = []
    while True:
        at = BLANKS.match(buffer, at).end()  # type: ignore[union-attr] # also matches the empty string
        if at == len(buffer):
            yield b"".join(lines)
            lines, buffer, at = [], _read_text(stream, characters, CHUNK), 0
            if not buffer:
                break
        elif buffer[at] == ("]" if inside else "["):
            inside, at = not inside, at + 1
        else:
            try:
                value, end = decoder.raw_decode(buffer, at)
            except ValueError as error:
                size = max(CHUNK, len(buffer) - at)
                more = _read_text(stream, characters, size) if _needs_more(error, buffer) else None
                if not more:
                    kind = _DamagedError if more is None else EOFError
                    raise kind(f"element {count + 1} of its JSON array is cut off or not JSON") from None
                buffer, at = buffer[at:] + more, 0
                continue
            count += 1
            lines.append(json.dumps(value).encode() + b"\n")
            at = end
    if inside:
        raise EOFError(f"its JSON array is not closed after element {count}")


def _read_text(stream: BinaryIO, decoder: codecs.IncrementalDecoder, size: int) -> str:
    """Return the next text, "" only at the end."""
    while raw := stream.read(size):
        if text := decoder.decode(raw):
            return text
    return decoder.decode(b"", final=True)


def _needs_more(error: Exception, buffer: str) -> bool:
    """True if parsing may have failed only because `buffer` ends inside a JSON value."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 16
