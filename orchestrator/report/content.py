"""Content of a page: sections of blocks, written as HTML and as Markdown by templates/. A string is a paragraph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ablatrix.orchestrator.report.figure_data import Figure


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Notes:
    entries: Sequence[str]


@dataclass(frozen=True)
class Health:
    """How many runs are in each state."""

    entries: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Verdict:
    name: str
    word: str
    sentence: str
    flags: Sequence[str]


@dataclass(frozen=True)
class Verdicts:
    entries: Sequence[Verdict]


@dataclass(frozen=True)
class Row:
    cells: Sequence[str]
    base: bool = False


@dataclass(frozen=True)
class Table:
    """A table. left: left-aligned columns of text; wide: those that may wrap."""

    head: Sequence[str]
    rows: Sequence[Row]
    left: Sequence[int] = (0,)
    wide: Sequence[int] = ()


class Link(str):
    """The text of a table cell that links to `href`, relative to the report."""

    __slots__ = ("href",)
    href: str

    def __new__(cls, text: str, href: str) -> Link:
        made = super().__new__(cls, text)
        made.href = href
        return made


@dataclass(frozen=True)
class Samples:
    """Texts side by side, each under its title."""

    entries: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Folded:
    title: str
    blocks: Sequence[Block]


Block = str | Heading | Notes | Health | Verdicts | Table | Figure | Code | Samples | Folded


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: Sequence[Block]
