"""Detect the format of corpus files by their content: JSON lines with layers around them, or something else."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ablatrix.trainer.data.corpus_files import plain_suffix
from ablatrix.trainer.data.decoders import COMPRESSED, PARAGRAPHS, PARQUET, WHOLE, explain_damage, unwrap
from ablatrix.trainer.rundir.errors import DataError
from ablatrix.trainer.rundir.files import open_for_reading

TO_LINES = {"values", "parquet", PARAGRAPHS, WHOLE}  # layers that are converted to JSON lines
HEAD = 1 << 16  # bytes read to detect the format
MOST_LAYERS = 6
BOM = b"\xef\xbb\xbf"
BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")  # UTF-16
TO_JSONL = "python -c \"import pandas; pandas.{read}.to_json('x.jsonl', orient='records', lines=True)\""
ARROW = "convert it: python -c \"from datasets import Dataset; Dataset.from_file({file!r}).to_json('x.jsonl')\""
NUMPY = "if it contains token ids: python -c \"import numpy; numpy.load({file!r}).astype('uint16').tofile('x.bin')\""
PICKLE = "it is not loaded, since that can run code; write JSON lines in the program that made it"
SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (  # offset, magic bytes, what the file is, what to do
    (0, b"ARROW1", "an Arrow (Feather) file", f"convert it: {TO_JSONL.format(read='read_feather({file!r})')}"),
    (0, b"\xff\xff\xff\xff", "an Arrow stream, as `datasets` writes it", ARROW),
    (0, b"SQLite format 3\0", "an SQLite database", "export a table: sqlite3 -json {quoted} 'select text from TABLE'"),
    (0, b"\x93NUMPY", "a NumPy array", NUMPY),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write its text as JSON lines"),
    (
        0,
        b"PK\x03\x04",
        "a ZIP archive (or a file from torch.save, numpy.savez or Excel)",
        "unpack it (unzip {quoted}) and use the file inside",
    ),
    (257, b"ustar", "a tar archive", "unpack it (tar -xf {quoted}) and use the file inside"),
    *((0, bytes([0x80, protocol]), "a Python pickle", PICKLE) for protocol in range(2, 6)),
)
LFS = "a Git LFS pointer, not the file itself; fetch that: git lfs install && git lfs pull"
PAGE = "an {kind} page that begins with {begin}: a login or error page was saved instead of the data; download it again"
LINES_TO_JSONL = (
    'python -c "import json, sys; [print(json.dumps(dict(text=t))) for t in map(str.strip, sys.stdin) if t]"'
    " < {quoted} > x.jsonl"
)


@dataclass(frozen=True)
class TextFile:
    """A file of JSON lines and the layers around them, outermost first."""

    path: Path
    layers: tuple[str, ...] = ()

    @property
    def direct(self) -> bool:
        """True if the file's bytes are the text itself, so that any offset can be read directly."""
        return not self.layers

    def open_raw(self) -> BinaryIO:
        """Open the file itself. Raises DataError if it cannot be read."""
        try:
            return open_for_reading(self.path, buffering=0)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from None

    def unwrapped(self, raw: BinaryIO) -> BinaryIO:
        """Return a stream of the decoded text of a file opened by `open_raw`, from the beginning."""
        raw.seek(0)
        for layer in self.layers:
            raw = unwrap(raw, layer, self.path)
        return raw


def is_other(head: bytes) -> bool:
    """True if a file with these first bytes certainly does not contain token ids."""
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml", b"version h")):
        return True
    return head.startswith(PARQUET) or any(
        len(magic) > 3 and head.startswith(magic, offset) for offset, magic, *_ in SIGNATURES
    )


def detect(path: Path, whole_texts: bool = False) -> TextFile:
    """Return a file with its layers, detected from its first bytes; for plain text, the name must also end in .txt.

    whole_texts: a plain text file is one document; otherwise documents are separated by blank lines. Raises DataError
    if the file contains no documents.
    """
    file = TextFile(path)
    with file.open_raw() as raw:
        while True:
            with explain_damage(path):
                head = file.unwrapped(raw).read(HEAD)
            layer = find_layer(head)
            if not layer or TO_LINES & set(file.layers) or len(file.layers) == MOST_LAYERS:
                break
            file = TextFile(path, (*file.layers, layer))
    if not TO_LINES & set(file.layers) and is_plain_text(path, head):
        return TextFile(path, (*file.layers, WHOLE if whole_texts else PARAGRAPHS))
    found = describe_other(head, str(path))
    if found:
        raise DataError(f"{path} is {found}")
    return file


def find_layer(head: bytes) -> str:
    """Return the outermost layer around the text, detected from its first bytes; "" if there is none."""
    for name, magics in COMPRESSED.items():
        if head.startswith(magics):
            return name
    if head.startswith(PARQUET):
        return "parquet"
    if head.startswith(BYTE_ORDER_MARKS):
        return "utf-16"
    text = head.removeprefix(BOM).lstrip()
    return "values" if re.match(rb"\[\s*[\[{\"\]]", text) or _spans_lines(text) else ""


def is_plain_text(path: Path, head: bytes) -> bool:
    """True if a file's name ends in .txt and its content starts with neither a JSON object nor binary data."""
    text = head.removeprefix(BOM).lstrip()
    return plain_suffix(path) == ".txt" and not text.startswith(b"{") and b"\0" not in head and not is_other(head)


def _spans_lines(text: bytes) -> bool:
    """True if `text` starts with a JSON object that spans lines, or is followed by a comma or another object."""
    first, newline, _ = text.partition(b"\n")
    if not text.startswith(b"{") or is_json(first):
        return False
    decoded = text.decode("utf-8", "replace")
    try:
        _, end = json.JSONDecoder().raw_decode(decoded)
    except ValueError:
        return bool(newline and re.fullmatch(rb"\{\s*", first))  # the object is longer than the head
    follows = decoded[end:].lstrip(" \t\r")[:1]
    return "\n" in decoded[:end] or follows in (",", "{")  # lines of an array without its brackets, or no newlines


def is_json(line: str | bytes) -> bool:
    """True if the line is a JSON value."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def describe_other(head: bytes, name: str) -> str:
    """Return what a file without JSON lines is, and what to do; "" if it may contain some. head: its first bytes."""
    places = {"file": name, "quoted": shlex.quote(name)}
    for offset, magic, what, advice in SIGNATURES:
        if head.startswith(magic, offset):
            return f"{what}; {advice.format(**places)}"
    text = head.removeprefix(BOM).lstrip()
    if head and not head.strip(b"\0"):
        return "nothing but zero bytes, as after an unfinished download or copy; fetch it again"
    if text.startswith(b"version https://git-lfs"):
        return LFS
    if re.match(rb"<[!?A-Za-z]", text):
        kind = "XML" if text.startswith(b"<?xml") else "HTML"
        return PAGE.format(kind=kind, begin=_begin(text))
    lines = [line.strip() for line in text.split(b"\n")]
    if not text or any(line.startswith((b"{", b"[", b'"')) for line in lines):
        return ""
    if b"\0" in head:
        return f"a binary file of an unknown kind (it begins with {head[:8].hex(' ')}); write its text as JSON lines"
    if len(text) == HEAD and len(lines) == 1:
        return ""  # the first line is longer than the head
    return _describe_text(lines, places)


def _describe_text(lines: list[bytes], places: dict[str, str]) -> str:
    for separator, kind, options in ((b"\t", "TSV", ", sep='\\t'"), (b",", "CSV", ""), (b";", "CSV", ", sep=';'")):
        names = lines[0].split(separator)
        if len(names) > 1 and all(re.fullmatch(rb"\"?[\w .-]{1,40}\"?", name) for name in names):
            read = TO_JSONL.format(read=f"read_csv({places['file']!r}{options})")
            return f"a {kind} table with the columns {', '.join(n.decode().strip() for n in names)}; convert it: {read}"
    how = LINES_TO_JSONL.format(**places)
    advice = f"name it .txt, or, if each line is a document, convert it: {how}"
    return f"plain text that begins with {_begin(lines[0])}, not JSON lines; {advice}"


def _begin(text: bytes) -> str:
    return repr(text[:40].decode("utf-8", "replace").split("\n")[0])
