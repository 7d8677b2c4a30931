"""Shards of a token cache that is being built: files with the tokens of consecutive lines."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

import numpy as np
from pydantic import BaseModel

from ablatrix.trainer.data.corpus import Lines, document_text
from ablatrix.trainer.rundir import files as safe_files

if TYPE_CHECKING:
    from ablatrix.trainer.data.encoder import Encoder


class ShardHead(BaseModel):
    """First line of a shard file: its size; the number of skipped lines, and the first skipped line, by reason."""

    lines: int
    tokens: int
    skipped: dict[str, int]
    first: dict[str, int] = {}


@dataclass
class Shard:
    """Tokens of consecutive lines. counts: number of tokens in each line, 0 if it was skipped.

    skipped: number of skipped lines by reason; first: number of the first skipped line by reason.
    """

    counts: np.ndarray
    tokens: np.ndarray
    skipped: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each line's tokens start, (lines + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])

    def write(self, path: Path) -> None:
        """Write the head as one line of JSON, the counts as uint32, and the tokens."""
        head = ShardHead(lines=len(self.counts), tokens=len(self.tokens), skipped=self.skipped, first=self.first)

        def write(file: IO[bytes]) -> None:
            file.write(head.model_dump_json().encode() + b"\n")
            file.write(self.counts.astype("<u4").tobytes())
            file.write(self.tokens.tobytes())

        safe_files.replace(path, write, durable=False)  # `open_shard` detects a partial file after a power cut

    @classmethod
    def read(cls, path: Path, dtype: np.dtype[Any]) -> Shard:
        """Read a shard. Raises FileNotFoundError if it does not exist or no longer exists."""
        file, counts, head = open_shard(path, dtype)
        with file:
            return cls(counts, np.fromfile(file, dtype=dtype, count=head.tokens), head.skipped, head.first)


def open_shard(path: Path, dtype: np.dtype[Any]) -> tuple[BinaryIO, np.ndarray, ShardHead]:
    """Return (file at the first token, counts, head) of a shard. Raises FileNotFoundError, also if it is incomplete."""
    file = safe_files.open_for_reading(path)
    try:
        head = ShardHead.model_validate_json(file.readline())
        counts = np.fromfile(file, dtype="<u4", count=head.lines)
        whole = os.fstat(file.fileno()).st_size == file.tell() + head.tokens * dtype.itemsize
    except ValueError:
        whole = False
    if not whole:
        file.close()
        with contextlib.suppress(PermissionError):  # another user's file, whose process will notice it too
            path.unlink(missing_ok=True)
        raise FileNotFoundError(path)
    return file, counts, head


def encode_shard(lines: Lines, numbers: range, encoder: Encoder) -> Shard:
    """Return the tokens of the lines of one shard."""
    counts = np.zeros(len(numbers), dtype=np.uint32)
    parts: list[np.ndarray] = []
    skipped: dict[str, int] = {}
    first: dict[str, int] = {}
    begin = int(lines.starts[numbers.start])
    raw = lines.source.read(begin, int(lines.starts[numbers.stop]) - begin)
    for k, line in enumerate(numbers):
        start = int(lines.starts[line]) - begin
        text, reason = document_text(raw[start : start + lines.size(line)], lines.text_key)
        if text is None:
            skipped[reason] = skipped.get(reason, 0) + 1
            first.setdefault(reason, line)
        else:
            parts.append(encoder.encode(text))
            counts[k] = len(parts[-1])
    tokens = np.concatenate(parts) if parts else np.zeros(0, dtype=encoder.dtype)
    return Shard(counts, tokens, skipped, first)
