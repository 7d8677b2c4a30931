"""Readers of a command's metrics, which return the complete records written since the last read."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ablatrix.orchestrator.job import binary_logs
from ablatrix.orchestrator.job.metric_parsers import Found, JsonParser, Parser, make_parser
from ablatrix.orchestrator.store.log_tail import plain_lines

LONGEST_LINE = 1 << 20  # bytes; a progress bar may write megabytes without a newline
TAIL = 64  # bytes before the offset, by which a rewritten file is recognized


class Reader(Protocol):
    """Reads a source as it grows. parser.seen: the names that occur in the source."""

    @property
    def parser(self) -> Parser: ...

    def read(self, final: bool = False) -> Iterator[Found]:
        """Yield what was written since the last call. final: nothing will follow; the last line may lack a newline."""

    def position(self) -> dict[str, Any]:
        """Return the position from which the next attempt's reader continues."""

    def resume(self, position: Mapping[str, Any]) -> None:
        """Continue from another reader's position; {} is the beginning of the source."""


def make_reader(source: Mapping[str, Any]) -> Reader:
    """Return the reader for a source described in command.json."""
    path, kind, columns = Path(source["path"]), source["kind"], source["columns"]
    if kind in binary_logs.FORMATS:
        return BinaryReader(path, kind, columns)
    if kind == "jsonl" and path.suffix == ".json":
        return DocumentReader(path, JsonParser(columns))
    return LineReader(path, make_parser(kind, columns, source["patterns"], source.get("labeled", False)))


class LineReader:
    """Reads the lines of a file; a rewritten file is read again from its beginning."""

    def __init__(self, path: Path, parser: Parser) -> None:
        self.path, self.parser = path, parser
        self.offset = 0
        self._tail = b""  # the bytes before the offset

    def read(self, final: bool = False) -> Iterator[Found]:
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            if self._is_rewritten(file.fileno()):
                self.offset, self._tail = 0, b""
            file.seek(self.offset)
            for raw in iter(lambda: file.readline(LONGEST_LINE), b""):
                if not raw.endswith(b"\n") and len(raw) < LONGEST_LINE and not final:
                    break
                self.offset += len(raw)
                self._tail = (self._tail + raw)[-TAIL:]
                for line in plain_lines(raw):
                    yield from self.parser.parse(line)

    def _is_rewritten(self, descriptor: int) -> bool:
        start = max(0, self.offset - len(self._tail))
        before = os.pread(descriptor, self.offset - start, start)
        return os.fstat(descriptor).st_size < self.offset or before != self._tail[-(self.offset - start) :]

    def position(self) -> dict[str, Any]:
        return {"offset": self.offset, "tail": self._tail.hex()}

    def resume(self, position: Mapping[str, Any]) -> None:
        if position.get("offset"):
            for _ in self.parser.parse(self._first_line()):  # the header of a CSV file
                pass
            self.offset, self._tail = position["offset"], bytes.fromhex(position["tail"])

    def _first_line(self) -> str:
        try:
            with self.path.open("rb") as file:
                return next(plain_lines(file.readline(LONGEST_LINE)), "")
        except OSError:
            return ""


class DocumentReader:
    """Reads a JSON document that is rewritten as it grows: a list of records, or Hugging Face's trainer_state.json.

    Any other file is read as JSON lines.
    """

    def __init__(self, path: Path, parser: JsonParser) -> None:
        self.path, self.parser = path, parser
        self.lines = LineReader(path, parser)
        self._version = (0, 0)  # mtime and size of the document when last read
        self._count = 0  # number of its records

    def read(self, final: bool = False) -> Iterator[Found]:
        try:
            stat = self.path.stat()
            if (stat.st_mtime_ns, stat.st_size) == self._version and not final:
                return
            document = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return
        except (ValueError, RecursionError):
            yield from self.lines.read(final)
            return
        self._version = stat.st_mtime_ns, stat.st_size
        records = document.get("log_history", [document]) if isinstance(document, dict) else document
        records = [record for record in records if isinstance(record, dict)] if isinstance(records, list) else []
        new = records[self._count :] if len(records) >= self._count else records
        self._count = len(records)
        for record in new:
            yield from self.parser.pick(record)

    def position(self) -> dict[str, Any]:
        return self.lines.position()

    def resume(self, position: Mapping[str, Any]) -> None:
        self.lines.resume(position)


class BinaryReader:
    """Reads the files of TensorBoard or Weights & Biases in a folder."""

    def __init__(self, folder: Path, kind: str, columns: Mapping[str, str]) -> None:
        self.folder = folder
        self.format = binary_logs.FORMATS[kind]
        self.parser = JsonParser(columns)
        self.offsets: dict[str, int] = {}

    def read(self, final: bool = False) -> Iterator[Found]:
        for path in sorted({path.resolve() for path in self.folder.rglob(self.format.pattern)}):  # sorted by time
            if path.is_file():
                yield from self._read_file(path)

    def _read_file(self, path: Path) -> Iterator[Found]:
        name = os.path.relpath(path, self.folder.resolve())
        start = self.offsets.get(name, 0)
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
        for end, payload in self.format.split(data, start):
            self.offsets[name] = end
            try:
                record = self.format.decode(payload)
            except binary_logs.DAMAGE:  # a record of another kind, or a corrupt one
                continue
            yield from self.parser.pick(record)

    def position(self) -> dict[str, Any]:
        return {"offsets": self.offsets}

    def resume(self, position: Mapping[str, Any]) -> None:
        self.offsets = dict(position.get("offsets", {}))
