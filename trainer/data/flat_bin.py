"""Flat files of token ids, as the prepare scripts of nanoGPT and modded-nanogpt write them (train.bin).

Such files have no documents: the last `test_size` windows of block_size tokens are held out, and everything before them
counts as one document. Several files are read as one. The type of the ids is detected from a header or their values.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ablatrix.trainer.data.corpus_files import describe_files, file_stamp, find_files
from ablatrix.trainer.data.formats import describe_other, is_other
from ablatrix.trainer.data.token_store import CompleteStore, count_held_out, read_tokens
from ablatrix.trainer.rundir.errors import DataError
from ablatrix.trainer.rundir.files import open_for_reading

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig
    from ablatrix.trainer.data.tokenizer import TokenizerInfo

PIECES = 64  # evenly spaced pieces of all files that are read to detect the type and for the fingerprint
PIECE = 1 << 18  # bytes per piece
MAGIC = 20240520  # used by modded-nanogpt and llm.c, whose header is 256 int32 (magic, version, number of tokens)
HEADER = 256 * 4
VERSIONS = {1: "<u2", 7: "<u4"}
CERTAIN = 16  # number of ids from which zeros at every second position are no coincidence
TYPES = ("<i8", "<u4", "<u2")  # tried in this order, because too narrow a type would read zeros in between


class FlatFile:
    """One open file of token ids."""

    def __init__(self, path: Path, setting: str) -> None:
        """Open the file. Raises DataError if it cannot be read or is recognized as something else."""
        self.path, (self.bytes, _) = path, file_stamp(path, setting)
        try:
            self.file: BinaryIO = open_for_reading(path, buffering=0)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        head = os.pread(self.file.fileno(), HEADER, 0)
        if not head:
            raise DataError(f"{setting}: {path} is empty; it must contain token ids")
        if is_other(head):
            raise DataError(f"{path} is {describe_other(head, str(path))}")
        numbers = np.frombuffer(head[:12], dtype="<i4") if len(head) == HEADER else [0]
        self.skip, self.dtype = 0, ""
        if numbers[0] == MAGIC:
            self.skip, self.dtype = HEADER, VERSIONS.get(int(numbers[1]), "")
            expected = int(numbers[2]) * np.dtype(self.dtype or "u2").itemsize
            if not self.dtype or expected != self.bytes - HEADER:
                raise DataError(
                    f"{path}: its header says {numbers[2]:,} tokens, which does not match its size; copy it again"
                )

    def pieces(self, most: int, align: int = 8) -> Iterator[bytes]:
        """Yield evenly spaced pieces of the ids, each starting at a multiple of `align` bytes."""
        size = self.bytes - self.skip
        count = min(most, -(-size // PIECE))
        for k in range(count):
            start = k * (size - PIECE) // (count - 1) // align * align if k else 0
            yield os.pread(self.file.fileno(), PIECE, self.skip + start)


class FlatStore(CompleteStore):
    """Files of token ids as a store of two lines: the training split and the held-out split."""

    def __init__(self, config: DataConfig, tokenizer: TokenizerInfo) -> None:
        """Open the files. Raises DataError if the ids are not this tokenizer's, or if nothing is left to train on."""
        paths = find_files(config)
        self.name = describe_files(config, paths)
        self.vocab_size, self.skipped, self.first_skipped = tokenizer.vocab_size, {}, {}
        self._files = [FlatFile(path, config.files_setting) for path in paths]
        self.dtype = self._find_dtype(tokenizer)
        sizes = [(file.bytes - file.skip) // self.dtype.itemsize for file in self._files]
        self._starts = [0, *np.cumsum(sizes).tolist()]
        total = self._starts[-1]
        windows = count_held_out(config.held_out, total // config.block_size)
        held_out = windows * config.block_size + bool(windows)
        if total - held_out <= config.block_size:
            raise DataError(
                f"{self.name}: {total} tokens are too few to hold out {windows} windows (data.test_size) of "
                f"data.block_size {config.block_size} and train on the rest; lower one of them"
            )
        self._offsets = np.array([0, total - held_out, total] if held_out else [0, total], dtype=np.int64)
        self.n_lines = self.n_documents = len(self._offsets) - 1
        self.fingerprint = self._digest()

    @cached_property
    def starts(self) -> np.ndarray:
        return self._offsets.astype(np.uint64)

    def first_held_out(self, test_size: float) -> int:
        return 1

    def read(self, line: int, start: int, stop: int) -> np.ndarray:
        """Return tokens [start, stop) of a line. Raises DataError if an id exceeds the vocabulary."""
        begin = int(self._offsets[line]) + start
        tokens = self._read(begin, stop - start)
        top = int(tokens.max(initial=0))
        if top >= self.vocab_size:
            position = begin + int(tokens.argmax())
            raise DataError(
                f"{self.name}: token {top} at position {position} exceeds the vocabulary ({self.vocab_size})"
            )
        return tokens

    def _read(self, begin: int, count: int) -> np.ndarray:
        parts = []
        while count > 0:
            k = bisect_right(self._starts, begin) - 1
            file, here = self._files[k], min(count, self._starts[k + 1] - begin)
            parts.append(read_tokens(file.file.fileno(), begin - self._starts[k], here, self.dtype, file.skip))
            begin, count = begin + here, count - here
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, self.dtype), *parts])

    def _pieces(self, align: int = 8) -> Iterator[bytes]:
        for file in self._files:
            yield from file.pieces(max(1, PIECES // len(self._files)), align)

    def _find_dtype(self, tokenizer: TokenizerInfo) -> np.dtype[Any]:
        """Return the type given by a header, else the widest type with which all ids read are the tokenizer's.

        Raises DataError if there is none.
        """
        named = {file.dtype for file in self._files}
        if len(named) > 1:
            raise DataError(f"{self.name}: the files differ in their headers or in the type of their ids")
        largest = {}
        for name in TYPES if named == {""} else named:
            dtype = np.dtype(name)
            if any(not file.bytes or (file.bytes - file.skip) % dtype.itemsize for file in self._files):
                continue
            ids = [np.frombuffer(piece, dtype=dtype) for piece in self._pieces()]
            largest[name] = max((int(part.max(initial=0)) for part in ids), default=0)
            if largest[name] < self.vocab_size and not any((part < 0).any() for part in ids):
                self._refuse_halves(ids)
                return dtype
        if not largest and all(file.bytes for file in self._files):
            raise DataError(
                f"{self.name}: not token ids: its size is not a multiple of 2 bytes; it is truncated, or not a .bin"
            )
        raise DataError(
            f"{self.name}: not token ids of tokenizer {tokenizer.name!r} as uint16 or uint32 (the largest is "
            f"{min(largest.values(), default=0)}, the vocabulary has {self.vocab_size}); set data.tokenizer to the one "
            "that made the file"
        )

    def _refuse_halves(self, ids: list[np.ndarray]) -> None:
        """Raise DataError if every second id is 0: the ids are wider, and the file was truncated within one of them."""
        enough = sum(map(len, ids)) >= CERTAIN
        if enough and any(part[::2].any() for part in ids) and not any(part[1::2].any() for part in ids):
            raise DataError(f"{self.name}: every second id would be 0: the file is cut off within an id; copy it again")

    def _digest(self) -> str:
        size = sum(file.bytes for file in self._files)
        digest = hashlib.sha256(f"{size} {self.dtype.name} {self.vocab_size}".encode())
        for piece in self._pieces(align=4):
            digest.update(piece)
        return digest.hexdigest()
