"""The formats of TensorBoard's event files and of Weights & Biases' offline folders, without either package.

Both contain framed protocol buffers. TensorBoard: length, checksum, data, checksum. W&B: LevelDB's log format, blocks
of 32 KiB across which a record may be split. Only complete frames are returned; checksums are not verified.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

BLOCK = 32768
FIRST, LAST, FULL = 2, 4, 1
WANDB_HEADER = 7

DAMAGE = (ValueError, IndexError, TypeError, AttributeError, RecursionError, struct.error)  # raised by `decode`

Fields = list[tuple[int, Any]]  # (number, value): an integer, or undecoded bytes


def tensorboard_frames(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield (end offset, content) of every complete frame in `data`, which begins at offset `start` of the file."""
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        end = at + 12 + length + 4
        if end > len(data):
            return
        yield start + end, data[at + 12 : end - 4]
        at = end


def wandb_frames(data: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield (end offset, content) of every complete record in W&B's blocks, like `tensorboard_frames`."""
    at, parts = (0, b"") if start else (WANDB_HEADER, b"")
    while at < len(data):
        left = BLOCK - (start + at) % BLOCK
        if left < 7:  # too small for a header: padding
            at += left
            continue
        if at + 7 > len(data):
            return
        length, kind = struct.unpack_from("<HB", data, at + 4)
        end = at + 7 + length
        if end > len(data):
            return
        parts = data[at + 7 : end] if kind in (FULL, FIRST) else parts + data[at + 7 : end]
        if kind in (FULL, LAST):
            yield start + end, parts
        at = end


def fields(data: bytes) -> Fields:
    """Return the fields of a protocol buffer. Raises ValueError or IndexError for any other data."""
    found: Fields = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            found.append((number, value))
            continue
        if wire == 2:
            length, at = _varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + length > len(data):
            raise ValueError("cut off")
        found.append((number, data[at : at + length]))
        at += length
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def event_record(data: bytes) -> dict[str, Any]:
    """Return TensorBoard's Event as {"step": n, tag: value, ...}: simple values and one-element tensors."""
    record: dict[str, Any] = {"step": 0}
    for number, value in fields(data):
        if number == 2:
            record["step"] = value
        elif number == 5:
            for _, summary in (pair for pair in fields(value) if pair[0] == 1):
                parts = dict(fields(summary))
                scalar = _float(parts[2]) if 2 in parts else _tensor(parts[8]) if 8 in parts else None
                if 1 in parts and scalar is not None:
                    record[parts[1].decode("utf-8", "replace")] = scalar
    return record


def _float(data: bytes) -> float:
    return float(struct.unpack("<f" if len(data) == 4 else "<d", data)[0])


def _tensor(data: bytes) -> float | None:
    """Return the number in a one-element TensorProto: tensor_content, float_val or double_val."""
    parts = dict(fields(data))
    content = parts.get(4) or parts.get(5) or parts.get(6)
    return _float(content) if isinstance(content, bytes) and len(content) in (4, 8) else None


def history_record(data: bytes) -> dict[str, Any]:
    """Return W&B's HistoryRecord as {"_step": n, name: value, ...}. Raises ValueError for other records."""
    history = next((value for number, value in fields(data) if number == 2), None)
    if not isinstance(history, bytes):
        raise ValueError("no history")
    record: dict[str, Any] = {}
    for number, value in fields(history):
        if number == 1:
            item = fields(value)
            nested = [part.decode("utf-8", "replace") for n, part in item if n == 2]
            parts = dict(item)
            name = parts[1].decode("utf-8", "replace") if 1 in parts else ".".join(nested)
            record[name] = _item(parts)
        elif number == 2:
            record.setdefault("_step", dict(fields(value)).get(1, 0))
    return record


def _item(parts: Mapping[int, Any]) -> Any:
    """Return the value of a HistoryItem: a number, or JSON (the only form in older versions)."""
    if 5 in parts:
        return parts[5]
    if 6 in parts:
        return _float(parts[6])
    return json.loads(parts[16]) if 16 in parts else None


@dataclass(frozen=True)
class Format:
    """A binary format. pattern: glob pattern of its file names."""

    pattern: str
    split: Callable[[bytes, int], Iterator[tuple[int, bytes]]]
    decode: Callable[[bytes], dict[str, Any]]


FORMATS = {
    "tensorboard": Format("*tfevents*", tensorboard_frames, event_record),
    "wandb": Format("*.wandb", wandb_frames, history_record),
}
