"""Flat files of token ids without a header, as nanoGPT's prepare scripts write them (train.bin).

Such a file has no documents: all of it but its end is one, and the last `test_size` windows of block_size tokens are
held out. The type of its ids is told by their values.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import DataConfig
from trainer.errors import DataError
from trainer.runlog import opened
from trainer.tokenizer import TokenizerInfo
from trainer.tokens.tokencache import file_stamp
from trainer.tokens.tokenstore import CompleteStore, read_tokens

PIECES = 64  # evenly spaced looks at the file
PIECE = 1 << 18  # bytes of each


class FlatStore(CompleteStore):
    """A .bin file as a store of two lines: what is trained on, and what is held out."""

    def __init__(self, config: DataConfig, tokenizer: TokenizerInfo) -> None:
        """Raises DataError where the ids are not this tokenizer's or where nothing is left to train on."""
        path = self._path = Path(config.file_path)
        size, _ = file_stamp(path)
        self.name = str(path)
        self.vocab_size, self.skipped = tokenizer.vocab_size, {}
        try:
            self._file = opened(path, buffering=0)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        self.dtype = self._find_dtype(size, tokenizer)
        total, held_out = size // self.dtype.itemsize, config.test_size * config.block_size + bool(config.test_size)
        if total - held_out <= config.block_size:
            raise DataError(
                f"{path}: has {total} tokens, too few to hold out data.test_size {config.test_size} windows of "
                f"data.block_size {config.block_size} and train on the rest; lower one of them"
            )
        self._offsets = np.array([0, total - held_out, total] if held_out else [0, total], dtype=np.int64)
        self.n_lines = self.n_documents = len(self._offsets) - 1
        self.fingerprint = self._digest(size)

    def first_held_out(self, test_size: int) -> int:
        """The line that is held out."""
        return 1

    def read(self, line: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of a line. Raises DataError where one is beyond the vocabulary."""
        begin = int(self._offsets[line]) + start
        tokens = read_tokens(self._file.fileno(), begin, stop - start, self.dtype)
        top = int(tokens.max(initial=0))
        if top >= self.vocab_size:
            position = begin + int(tokens.argmax())
            raise DataError(
                f"{self.name}: token {top} at position {position} is beyond the vocabulary ({self.vocab_size})"
            )
        return tokens

    def _find_dtype(self, size: int, tokenizer: TokenizerInfo) -> np.dtype[Any]:
        """uint32 if all ids looked at are the tokenizer's when read so, else uint16 if they are when read so."""
        pieces = list(self._pieces(size))
        tops = []
        for name in ("<u4", "<u2"):
            dtype = np.dtype(name)
            if size and size % dtype.itemsize == 0:
                tops.append(max(int(np.frombuffer(piece, dtype=dtype).max()) for piece in pieces))
                if tops[-1] < self.vocab_size:
                    return dtype
        raise DataError(
            f"{self.name}: not token ids of tokenizer {tokenizer.name!r} as uint16 or uint32 (the largest is "
            f"{min(tops, default=0)}, the vocabulary has {self.vocab_size}); set data.tokenizer to what made the file"
        )

    def _pieces(self, size: int) -> Iterator[bytes]:
        count = min(PIECES, -(-size // PIECE))
        for k in range(count):
            start = k * (size - PIECE) // (count - 1) // 4 * 4 if k else 0
            yield os.pread(self._file.fileno(), PIECE, start)

    def _digest(self, size: int) -> str:
        digest = hashlib.sha256(f"{size} {self.dtype.name} {self.vocab_size}".encode())
        for piece in self._pieces(size):
            digest.update(piece)
        return digest.hexdigest()
