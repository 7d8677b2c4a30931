"""Sampling modes that reach every document: windows of one token stream, and blocks packed with whole documents.

Both treat the training text as one sequence in which every document follows a separator token. A token is drawn
uniformly by rejection sampling: a random byte, at offset k of its line, selects token k of that line (0 is the
separator); if the line has fewer tokens, another byte is drawn (a token is at least one byte). A draw thus needs only
the tokens of single documents, and is the same whether or not the corpus is already tokenized.
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

PADDING = -1  # marks a target that is not scored
GROUP = 256  # bytes of text per token of a block in a packing group, which is about 60 blocks
KEPT_GROUPS = 4096


class TrainingText:
    """Lines of a store as one sequence: a separator followed by the tokens, for each document."""

    def __init__(self, store: TokenStore, lines: range, separator: int) -> None:
        self.store, self.lines, self.separator = store, lines, separator
        self._begin, end = int(store.starts[lines.start]), int(store.starts[lines.stop])
        self._size = end - self._begin

    def draw(self, fractions: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (line, position) of the tokens selected by fractions in [0, 1); position 0 is the separator."""
        at = self._begin + np.minimum((fractions * self._size).astype(np.uint64), np.uint64(self._size - 1))
        lines = np.searchsorted(self.store.starts, at.astype(np.uint64), side="right") - 1
        positions = at.astype(np.int64) - self.store.starts[lines].astype(np.int64)
        for k, _ in self.store.accepted(lines, np.maximum(positions, 1)):
            yield int(lines[k]), int(positions[k])

    def read(self, line: int, position: int, window: np.ndarray) -> int:
        """Fill the window (T,) with tokens from this position on; return how many there are before the text ends."""
        filled, length = 0, len(window)
        while filled < length and line < self.lines.stop:
            count = self.store.count(line)
            if count and position == 0:
                window[filled], position = self.separator, 1
                filled += 1
            taken = min(length - filled, count + 1 - position) if count else 0
            if taken:
                window[filled : filled + taken] = self.store.read(line, position - 1, position - 1 + taken)
                filled += taken
            line, position = line + 1, 0
        return filled

    def length(self, line: int) -> int:
        """Return the number of tokens of a line including the separator, 0 if it is not a document."""
        count = self.store.count(line)
        return count + 1 if count else 0

    def require(self, length: int) -> None:
        """Raise DataError unless the text has `length` tokens."""
        total = 0
        for line in self.lines:
            total += self.length(line)
            if total >= length:
                return
        raise DataError(
            f"{self.store.name}: {total} tokens to train on, but data.block_size {length - 1} needs {length}; "
            f"set data.block_size to at most {max(total - 1, 1)}"
        )


class Piece(NamedTuple):
    """A document with its separator, or part of it if it exceeds a block."""

    line: int
    position: int
    length: int


class Packing:
    """Blocks of whole documents: neighboring documents are packed together by best fit, longest first.

    A document that exceeds a block is cut into blocks, and the remainder is packed. Each document appears exactly once.
    """

    def __init__(self, text: TrainingText, block_size: int) -> None:
        self.text, self.block_size = text, block_size
        self._bytes = GROUP * block_size
        self._packed = lru_cache(KEPT_GROUPS)(self._pack)

    def block(self, line: int, position: int) -> list[Piece]:
        """Return the pieces of the block that contains a token."""
        start = position - position % self.block_size
        if start + self.block_size <= self.text.store.count(line) + 1:
            return [Piece(line, start, self.block_size)]
        lines, lengths, numbers = self._packed(int(self.text.store.starts[line]) // self._bytes)
        together = np.flatnonzero(numbers == numbers[lines == line])
        pairs = zip(lines[together].tolist(), lengths[together].tolist(), strict=True)
        return [Piece(line, self.text.store.count(line) + 1 - length, length) for line, length in pairs]

    def blocks(self, group: int) -> list[list[Piece]]:
        """Return all blocks of a group, [] if no line starts in it."""
        tokens = (
            (line, position)
            for line in self._lines(group)
            for position in range(0, self.text.length(line), self.block_size)
        )
        return [block for token in tokens if (block := self.block(*token))[0][:2] == token]

    @property
    def groups(self) -> range:
        """Group numbers: group k has the lines that start in bytes [k, k + 1) * GROUP * block_size."""
        starts, lines = self.text.store.starts, self.text.lines
        return range(int(starts[lines.start]) // self._bytes, (int(starts[lines.stop]) - 1) // self._bytes + 1)

    def _lines(self, group: int) -> range:
        bounds = np.array([group, group + 1], dtype=np.uint64) * np.uint64(self._bytes)
        first, last = np.searchsorted(self.text.store.starts[:-1], bounds).tolist()
        return range(max(first, self.text.lines.start), min(last, self.text.lines.stop))

    def _pack(self, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (line, length, block number) of each piece packed in a group, in packing order."""
        lines = self._lines(group)
        counts = self.text.store.counts(lines)
        lengths = (counts + (counts > 0)) % self.block_size
        order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        return lines.start + order, lengths[order], np.array(best_fit(lengths[order].tolist(), self.block_size))

    def fill(self, line: int, position: int, x: np.ndarray, y: np.ndarray) -> None:
        """Fill x (T,) and y (T,) with the inputs and targets of the block that contains a token.

        The target of each token is the next token of its document, and the separator for the last token. The rest of
        the block is filled with separators without targets.
        """
        x[:], y[:], filled = self.text.separator, PADDING, 0
        for document, begin, length in self.block(line, position):
            start, end = max(begin - 1, 0), filled + length
            tokens = self.text.store.read(document, start, min(begin + length, self.text.store.count(document)))
            x[filled + start + 1 - begin : end] = tokens[: begin - 1 + length - start]
            targets = tokens[begin - start :]
            y[filled : filled + len(targets)], y[filled + len(targets) : end] = targets, self.text.separator
            filled = end


def best_fit(lengths: Iterable[int], size: int) -> list[int]:
    """Return the block, of `size` tokens, for each piece: the fullest block that has room for it.

    lengths: longest first, which makes this best-fit decreasing (Johnson et al. 1974), used for documents by Ding et
    al. 2024, "Fewer Truncations Improve Language Modeling".
    """
    numbers: list[int] = []
    room: list[tuple[int, int]] = []  # blocks that are not full, as sorted (tokens left, number)
    count = 0
    for length in lengths:
        k = bisect_left(room, (length, 0))
        if k < len(room):
            left, number = room.pop(k)
        else:
            left, number, count = size, count, count + 1
        numbers.append(number)
        if left > length:
            insort(room, (left - length, number))
    return numbers
