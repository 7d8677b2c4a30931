"""Lines of a corpus: their index, the text of each, and why some are not documents. Torch-free.

Lines end at b"\\n" and are numbered from 0, including blank ones. A line that cannot be a document is skipped for one
of the reasons in `SKIPS`; the whole corpus is rejected only if no document is left.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ablatrix.trainer.data.decoders import CHUNK, TO_UTF8
from ablatrix.trainer.data.formats import BOM
from ablatrix.trainer.rundir.errors import DataError

if TYPE_CHECKING:
    from ablatrix.trainer.data.text_source import Source

MIN_CHARACTERS = 10  # a text shorter than this is not a document
SKIPS = {  # reason -> (name of one such line, name of several)
    "blank": ("blank line", "blank lines"),
    "not_utf8": ("line that is not UTF-8", "lines that are not UTF-8"),
    "not_json": ("line that is not JSON", "lines that are not JSON"),
    "not_object": ("line that is not a JSON object", "lines that are not a JSON object"),
    "no_text_key": ("object without the text key", "objects without the text key"),
    "not_string": ("object whose text is not a string", "objects whose text is not a string"),
    "too_short": (f"document under {MIN_CHARACTERS} characters", f"documents under {MIN_CHARACTERS} characters"),
}
FIRST_LINES = 1000  # lines that are read again to explain an error
EXPLAINED = ("not_utf8", "not_json", "not_object", "not_string")
JSON_TYPES: dict[type, str] = {
    **{list: "a list", dict: "an object", str: "a string", bool: "true or false", type(None): "null"},
    **dict.fromkeys((int, float), "a number"),
}


def scan_lines(source: Source, write: Callable[[np.ndarray], object], progress: Callable[[int], object]) -> int:
    """Find where lines start in one pass over the corpus, using constant memory.

    write: called with arrays of offsets, in order: the start of every line, then the end of the corpus.
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


def document_text(line: bytes, text_key: str) -> tuple[str | None, str]:
    """Return (text, "") for a line that is a document, else (None, reason), where reason is a key of SKIPS.

    A line may start with a byte order mark, like the first line of each part in a file made by concatenation.
    """
    line = line.removeprefix(BOM).strip(b" \t\r\n")
    if not line:
        return None, "blank"
    try:
        record = _parse(line)
    except UnicodeDecodeError:
        return None, "not_utf8"
    except ValueError:
        return None, "not_json"
    if not isinstance(record, dict):
        return None, "not_object"
    if text_key not in record:
        return None, "no_text_key"
    text = record[text_key]
    if not isinstance(text, str):
        return None, "not_string"
    return (text, "") if len(text) >= MIN_CHARACTERS else (None, "too_short")


def _parse(line: bytes) -> Any:
    """Return the JSON value of a line. Raises ValueError."""
    return json.loads(line.decode())


class Lines:
    """The documents of a corpus, by line number."""

    def __init__(self, source: Source, starts: np.ndarray, text_key: str) -> None:
        self.source, self.starts, self.text_key = source, starts, text_key

    def __len__(self) -> int:
        return len(self.starts) - 1

    def size(self, line: int) -> int:
        """Return the size of a line in bytes, an upper bound on its text's bytes and its tokens."""
        return int(self.starts[line + 1]) - int(self.starts[line])

    def raw(self, line: int) -> bytes:
        """Return a line's bytes."""
        return self.source.read(int(self.starts[line]), self.size(line))

    def record(self, line: int) -> dict[str, Any]:
        """Return the JSON object of a line that is a document."""
        value: dict[str, Any] = _parse(self.raw(line).removeprefix(BOM))
        return value

    def text(self, line: int) -> tuple[str | None, str]:
        """Return `document_text` for a line."""
        return document_text(self.raw(line), self.text_key)

    def place(self, line: int) -> str:
        """Return `line 7` (from 1, in its file) or `element 7` (of a JSON array); with several files, with the name."""
        number = self.source.locate(int(self.starts[line]))
        file = self.source.files[number]
        first = int(np.searchsorted(self.starts, self.source.starts[number]))
        text = f"{'element' if 'values' in file.layers else 'line'} {line - first + 1}"
        return f"{text} of {file.path.name}" if len(self.source.files) > 1 else text

    def explain(self, line: int, reason: str) -> str:
        """Return where a skipped line is and what is wrong with it, for use in messages."""
        where, raw = self.place(line), self.raw(line).removeprefix(BOM).strip()
        try:
            record = _parse(raw)
        except UnicodeDecodeError as error:
            return f"{where}, byte {raw[error.start]:#04x}; if the whole file is Latin-1: {TO_UTF8}"
        except ValueError as error:
            return f"{where}: {_describe_json_error(error, raw)}" if reason == "not_json" else where
        if reason == "no_text_key":
            return f"{where}, which has {', '.join(map(repr, list(record)[:8])) or 'no key'}"
        if reason in ("not_object", "not_string"):
            value = record if reason == "not_object" else record[self.text_key]
            return f"{where}, where it is {JSON_TYPES[type(value)]}{_suggest_fix(reason, value)}"
        return where


def _suggest_fix(reason: str, value: Any) -> str:
    if reason == "not_object" and isinstance(value, str):
        return "; make objects of them: jq -c '{text: .}'"
    if reason == "not_string" and isinstance(value, dict) and "0" in value:
        return "; a table by columns, as pandas writes it: pass orient='records', lines=True to to_json"
    if reason == "not_string" and isinstance(value, list):
        return "; join its parts, for instance with jq -c '.text |= join(\"\\n\")'"
    return ""


def _describe_json_error(error: Exception, raw: bytes) -> str:
    if raw.startswith((b"{'", b"{u'")):
        return "it is in Python's notation (single quotes), not JSON's"
    return f"{error.msg} (character {error.pos + 1})" if isinstance(error, json.JSONDecodeError) else "cannot be read"


def count_skipped(reason: str, count: int) -> str:
    """Return a count of skipped lines, such as `1 blank line` or `3 blank lines`."""
    one, several = SKIPS.get(reason, (reason, reason))
    return f"{count:,} {one if count == 1 else several}"


def describe_skipped(name: str, lines: int, skipped: dict[str, int], first: dict[str, str]) -> str:
    """Return a sentence about the skipped lines, "" if only blank lines were skipped.

    lines: number of lines in the corpus. skipped: number of lines by reason. first: first line by reason.
    """
    reasons = {reason: count for reason, count in skipped.items() if reason != "blank"}
    if not reasons:
        return ""
    parts = [count_skipped(r, n) + (f" (first: {first[r]})" if r in first else "") for r, n in reasons.items()]
    count, total = sum(reasons.values()), lines - skipped.get("blank", 0)
    return f"{name}: skipped {count:,} of {total:,} lines ({_percent(count / max(total, 1))}): {'; '.join(parts)}"


def _percent(share: float) -> str:
    """Return a positive share as a percentage that never rounds to 0."""
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}" if share >= 0.001 else "under 0.1%"


def no_documents(name: str, skipped: dict[str, int], text_key: str, lines: Lines) -> DataError:
    """Return the error for a corpus without any documents, including the reasons."""
    if not skipped:
        return DataError(f"{name}: the file is empty; it must contain one JSON object per line")
    reasons = ", ".join(count_skipped(reason, count) for reason, count in skipped.items())
    message = f"{name}: no documents found ({reasons})"
    if "no_text_key" in skipped:
        message += f"; there is no key {text_key!r}, but {_suggest_key(lines, text_key)}"
    else:
        worst = max(skipped, key=lambda reason: skipped[reason])
        line = next((k for k in range(min(len(lines), FIRST_LINES)) if lines.text(k)[1] == worst), None)
        message += f"; {lines.explain(line, worst)}" if line is not None and worst in EXPLAINED else ""
    return DataError(message)


def _suggest_key(lines: Lines, text_key: str) -> str:
    """Return `'content', 'id': set data.text_key`: the keys of the first objects, and which one is probably meant."""
    seen: dict[str, Any] = {}
    for line in range(min(len(lines), FIRST_LINES)):
        try:
            record = _parse(lines.raw(line).removeprefix(BOM))
        except ValueError:
            continue
        if isinstance(record, dict):
            seen |= {key: value for key, value in record.items() if key not in seen}
    keys = ", ".join(map(repr, list(seen)[:10])) or "no keys at all"
    nested = listed = ""
    for key, value in seen.items():
        if isinstance(value, dict) and isinstance(value.get(text_key), str):
            nested = nested or f"{key}.{text_key}"
        if len(lines) == 1 and isinstance(value, list) and value and isinstance(value[0], dict):
            listed = listed or key
    if listed:
        return f"{keys}; its documents seem to be a list under {listed!r}: jq -c '.{listed}[]' FILE > x.jsonl"
    if nested:
        return f"{keys}; the text seems to be {nested}: jq -c '{{text: .{nested}}}' FILE > x.jsonl"
    texts = [key for key, value in seen.items() if isinstance(value, str)]
    if seen and not texts:
        return f"{keys}, none of them with a string value: write the text of each document under one key"
    near = next((key for key in texts if key.casefold() == text_key.casefold()), "")
    near = near or max(texts, key=lambda key: len(seen[key]), default="")
    return f"{keys}: set data.text_key" + (f" (probably {near})" if near else "")
