"""Sampling that reaches every document: windows of one token stream, and blocks packed with whole documents.

Both treat the training text as one sequence in which every document follows a separator token. A token of it is drawn
uniformly: a byte of the corpus is drawn, and again if its line has fewer tokens than come before that byte in its line
(a token is a byte at least). So a draw needs the tokens of single documents only, and is the same whether or not the
corpus is tokenized already.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ablatrix.trainer.rundir.errors import DataError

if TYPE_CHECKING:
    from ablatrix.trainer.data.token_store import TokenStore

PADDING = -1  # a target that is not scored
GROUP = 256  # bytes of text per token of a block that are packed together: about 60 blocks
KEPT_GROUPS = 256


class TrainingText:
    """Lines of a store as one sequence: a separator and then the tokens of each document."""

    def __init__(self, store: TokenStore, lines: range, separator: int) -> None:
        self.store, self.lines, self.separator = store, lines, separator
        self._begin, end = int(store.starts[lines.start]), int(store.starts[lines.stop])
        self._size = end - self._begin

    def draw(self, fractions: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (line, position) of the tokens that the fractions in [0, 1) select; position 0 is the separator."""
        at = self._begin + np.minimum((fractions * self._size).astype(np.uint64), np.uint64(self._size - 1))
        lines = np.searchsorted(self.store.starts, at.astype(np.uint64), side="right") - 1
        positions = at.astype(np.int64) - self.store.starts[lines].astype(np.int64)
        for k, _ in self.store.accepted(lines, np.maximum(positions, 1)):
            yield int(lines[k]), int(positions[k])

    def read(self, line: int, position: int, window: np.ndarray) -> int:
        """Fill the window (T,) with the tokens from there on; return how many there are before the text ends."""
        filled = 0
        while filled < len(window) and line < self.lines.stop:
            count = self.store.count(line)
            if count:
                part = self.within(line, position, min(len(window) - filled, count + 1 - position))
                window[filled : filled + len(part)] = part
                filled += len(part)
            line, position = line + 1, 0
        return filled

    def within(self, line: int, position: int, count: int) -> np.ndarray:
        """Return `count` tokens from a position of one document; the one after its last is the next separator."""
        start, stop = max(position - 1, 0), min(position - 1 + count, self.store.count(line))
        found = np.full(count, self.separator, dtype=np.int64)
        found[start + 1 - position : stop + 1 - position] = self.store.read(line, start, stop)
        return found

    def require(self, length: int) -> None:
        """Raise DataError unless the text has `length` tokens."""
        total = 0
        for line in self.lines:
            count = self.store.count(line)
            total += count + 1 if count else 0
            if total >= length:
                return
        raise DataError(
            f"{self.store.name}: has {total} tokens to train on, but data.block_size {length - 1} needs {length}; "
            f"set data.block_size to at most {max(total - 1, 1)}"
        )


class Piece(NamedTuple):
    """Part of a document with its separator: the whole one unless it exceeds a block."""

    line: int
    position: int
    length: int


class Packing:
    """Blocks of whole documents: those of neighboring lines are packed together by best fit, longest first.

    A document that exceeds a block is cut into blocks, and its rest is packed. Every document is in the blocks once.
    """

    def __init__(self, text: TrainingText, block_size: int) -> None:
        self.text, self.block_size = text, block_size
        self._bytes = GROUP * block_size
        self._packed = lru_cache(KEPT_GROUPS)(self._pack)

    def block(self, line: int, position: int) -> list[Piece]:
        """Return the pieces of the block that holds a token."""
        group = int(self.text.store.starts[line]) // self._bytes
        blocks, places = self._packed(group)
        return blocks[places[line, position // self.block_size]]

    def blocks(self, group: int) -> list[list[Piece]]:
        """Return all blocks of a group, [] where no line starts in it."""
        return self._packed(group)[0]

    @property
    def groups(self) -> range:
        """Numbers of the groups: group k has the lines that start in bytes [k, k + 1) * GROUP * block_size."""
        starts, lines = self.text.store.starts, self.text.lines
        return range(int(starts[lines.start]) // self._bytes, (int(starts[lines.stop]) - 1) // self._bytes + 1)

    def _pack(self, group: int) -> tuple[list[list[Piece]], dict[tuple[int, int], int]]:
        """Return the blocks of a group, and the number of the block by line and piece."""
        blocks = best_fit(self._pieces(group), self.block_size)
        places = {(p.line, p.position // self.block_size): k for k, block in enumerate(blocks) for p in block}
        return blocks, places

    def _pieces(self, group: int) -> Iterator[Piece]:
        bounds = np.array([group, group + 1], dtype=np.uint64) * np.uint64(self._bytes)
        first, last = np.searchsorted(self.text.store.starts[:-1], bounds)
        for line in range(max(int(first), self.text.lines.start), min(int(last), self.text.lines.stop)):
            count = self.text.store.count(line)
            length = count + 1 if count else 0
            for position in range(0, length, self.block_size):
                yield Piece(line, position, min(self.block_size, length - position))

    def fill(self, line: int, position: int, x: np.ndarray, y: np.ndarray) -> None:
        """Write the inputs (T,) and targets (T,) of the block that holds a token.

        The target of each token is the one that follows in its document, after the last one the separator. What is
        left of the block is separators without a target.
        """
        x[:], y[:], filled = self.text.separator, PADDING, 0
        for piece in self.block(line, position):
            tokens = self.text.within(piece.line, piece.position, piece.length + 1)
            place = slice(filled, filled + piece.length)
            x[place], y[place] = tokens[:-1], tokens[1:]
            filled += piece.length


def best_fit(pieces: Iterable[Piece], size: int) -> list[list[Piece]]:
    """Pack pieces into blocks of `size` tokens: longest first, each into the fullest block that has room for it.

    Best-fit decreasing (Johnson et al. 1974), as used for documents by Ding et al. 2024, "Fewer Truncations Improve
    Language Modeling".
    """
    blocks: list[list[Piece]] = []
    room: list[tuple[int, int]] = []  # of the blocks that are not full: (tokens left, number), sorted
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        k = bisect_left(room, (piece.length, 0))
        if k < len(room):
            left, number = room.pop(k)
            blocks[number].append(piece)
        else:
            left, number = size, len(blocks)
            blocks.append([piece])
        if left > piece.length:
            insort(room, (left - piece.length, number))
    return blocks
