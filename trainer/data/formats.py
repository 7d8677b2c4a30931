"""Tell the format of a corpus file by its content: what is JSON lines, in which layers, and what is something else."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ablatrix.trainer.data.decoders import COMPRESSED, explain_damage, unwrap
from ablatrix.trainer.rundir.errors import DataError
from ablatrix.trainer.rundir.files import open_for_reading

HEAD = 1 << 16  # bytes that are looked at
MOST_LAYERS = 6
BOM = b"\xef\xbb\xbf"
BYTE_ORDER_MARKS = {  # the longer ones first: UTF-32's begins like UTF-16's
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
TO_JSONL = "python -c \"import pandas; pandas.{read}.to_json('x.jsonl', orient='records', lines=True)\""
PARQUET = f"convert it: {TO_JSONL.format(read='read_parquet({file!r})')} (needs pip install pyarrow)"
ARROW = "convert it: python -c \"from datasets import Dataset; Dataset.from_file({file!r}).to_json('x.jsonl')\""
NUMPY = "if it holds token ids: python -c \"import numpy; numpy.load({file!r}).astype('uint16').tofile('x.bin')\""
OBJECTS = "it is not loaded, since that can run code; write JSON lines in the program that made it"
UNPACK = "unpack it ({command} {quoted}) and give the file inside"
SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (  # offset, bytes, what it is, what to do
    (0, b"PAR1", "a Parquet file", PARQUET),
    (0, b"ARROW1", "an Arrow (Feather) file", f"convert it: {TO_JSONL.format(read='read_feather({file!r})')}"),
    (0, b"\xff\xff\xff\xff", "an Arrow stream, as `datasets` writes it", ARROW),
    (0, b"SQLite format 3\0", "an SQLite database", "export a table: sqlite3 -json {quoted} 'select text from TABLE'"),
    (0, b"\x93NUMPY", "a NumPy array", NUMPY),
    (0, b"PK\x03\x04", "a ZIP archive (or a file of torch.save, numpy.savez or Excel)", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", UNPACK),
    (0, b"\x1f\x9d", "compressed with compress", UNPACK),
    (0, b"LZIP", "compressed with lzip", UNPACK),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write its texts as JSON lines"),
    (0, b"Obj\x01", "an Avro file", "write its texts as JSON lines"),
    (0, b"ORC", "an ORC file", "write its texts as JSON lines"),
    (0, b"%PDF", "a PDF", "extract its text and write it as JSON lines"),
    *((0, bytes([0x80, protocol]), "a Python pickle", OBJECTS) for protocol in range(2, 6)),
)
COMMANDS = {b"PK\x03\x04": "unzip", b"ustar": "tar -xf", b"7z\xbc\xaf\x27\x1c": "7z x", b"Rar!": "unrar x"} | {
    b"\x04\x22\x4d\x18": "lz4 -d",
    b"\x1f\x9d": "gzip -d",
    b"LZIP": "lzip -d",
}
LFS = "a Git LFS pointer, not the file itself; fetch that: git lfs install && git lfs pull"
PAGE = "an {kind} page that begins with {begin}: a login or error page was saved instead of the data; download it again"
LINES_TO_JSONL = (
    'python -c "import json, sys; [print(json.dumps(dict(text=t))) for t in map(str.strip, sys.stdin) if t]"'
    " < {quoted} > x.jsonl"
)


@dataclass(frozen=True)
class TextFile:
    """A file of JSON lines, and the layers around them, outermost first."""

    path: Path
    layers: tuple[str, ...] = ()

    @property
    def direct(self) -> bool:
        """True if the file's bytes are the text, so that it can be read at any place."""
        return not self.layers

    def open_raw(self) -> BinaryIO:
        """Return the file itself. Raises DataError where it cannot be read."""
        try:
            return open_for_reading(self.path, buffering=0)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from None

    def unwrapped(self, raw: BinaryIO) -> BinaryIO:
        """Return the stream of the text in a file that `open_raw` gave, from its beginning."""
        raw.seek(0)
        for layer in self.layers:
            raw = unwrap(raw, layer, self.path)
        return raw


def is_other(head: bytes) -> bool:
    """True if these first bytes are certainly no token ids."""
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"version h")):
        return True
    return any(len(magic) > 3 and head.startswith(magic, offset) for offset, magic, *_ in SIGNATURES)


def detect(path: Path) -> TextFile:
    """Return how a file is to be read, from its first bytes. Raises DataError for what is not JSON lines."""
    file = TextFile(path)
    with file.open_raw() as raw:
        while True:
            with explain_damage(path):
                head = file.unwrapped(raw).read(HEAD)
            layer = find_layer(head)
            if not layer or "values" in file.layers or len(file.layers) == MOST_LAYERS:
                break
            file = TextFile(path, (*file.layers, layer))
    found = describe_other(head, str(path))
    if found:
        raise DataError(f"{path}: is {found}")
    return file


def find_layer(head: bytes) -> str:
    """Return the layer that stands around the text, by its first bytes; "" where there is none."""
    for name, magics in COMPRESSED.items():
        if head.startswith(magics):
            return name
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    text = head.removeprefix(BOM).lstrip()
    if b"\0" in head[:4] and head[:4].strip(b"\0") and re.match(rb"\0*[\[{]", head):
        encoding = json.detect_encoding(head)
        return encoding if encoding.endswith(("le", "be")) else ""
    if b"\n" not in head and re.search(rb"[}\]]\s*\r\s*[{\[]", head):
        return "cr"
    if re.match(rb"\[\s*[\[{\"\]]", text) or _spans_lines(text):
        return "values"
    return ""


def _spans_lines(text: bytes) -> bool:
    """True if a JSON object begins here that goes on beyond its line, or is followed by a comma or another object."""
    first, newline, _ = text.partition(b"\n")
    if not text.startswith(b"{") or _is_json(first):
        return False
    decoded = text.decode("utf-8", "replace")
    try:
        _, end = json.JSONDecoder().raw_decode(decoded)
    except ValueError:
        return bool(newline and re.fullmatch(rb"\{\s*", first))  # an object longer than the head
    follows = decoded[end:].lstrip(" \t\r")[:1]
    return "\n" in decoded[:end] or follows in (",", "{")  # lines of an array without its brackets, or no line breaks


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def describe_other(head: bytes, name: str) -> str:
    """Return what a file is that holds no JSON lines, and what to do; "" where it may hold some. head: first bytes."""
    places = {"file": name, "quoted": shlex.quote(name)}
    for offset, magic, what, advice in SIGNATURES:
        if head.startswith(magic, offset):
            return f"{what}; {advice.format(command=COMMANDS.get(magic, ''), **places)}"
    text = head.removeprefix(BOM).lstrip()
    if head and not head.strip(b"\0"):
        return "nothing but zero bytes: a download or copy that was never finished; fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return LFS
    if re.match(rb"<[!?A-Za-z]", text):
        kind = "XML" if text.startswith(b"<?xml") else "HTML"
        return PAGE.format(kind=kind, begin=_begin(text))
    lines = [line.strip() for line in text.split(b"\n")]
    if not text or any(line.startswith((b"{", b"[", b'"')) for line in lines):
        return ""
    if b"\0" in head:
        return f"a binary file of an unknown kind (it begins with {head[:8].hex(' ')}); write its texts as JSON lines"
    if len(text) == HEAD and len(lines) == 1:
        return ""  # the first line is longer than what was looked at
    return _describe_text(lines, places)


def _describe_text(lines: list[bytes], places: dict[str, str]) -> str:
    for separator, kind, options in ((b"\t", "TSV", ", sep='\\t'"), (b",", "CSV", ""), (b";", "CSV", ", sep=';'")):
        names = lines[0].split(separator)
        if len(names) > 1 and all(re.fullmatch(rb"\"?[\w .-]{1,40}\"?", name) for name in names):
            read = TO_JSONL.format(read=f"read_csv({places['file']!r}{options})")
            return f"a {kind} table with the columns {', '.join(n.decode().strip() for n in names)}; convert it: {read}"
    how = LINES_TO_JSONL.format(**places)
    return f"plain text that begins with {_begin(lines[0])}, not JSON lines; with a document in each line: {how}"


def _begin(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace").split("\n")[0])
