"""What a report is made of: sections of blocks, which page.py writes as HTML and markdown.py as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ablatrix.orchestrator.report.plots import Figure


@dataclass(frozen=True)
class Text:
    text: str
    kind: str = "text"


@dataclass(frozen=True)
class Heading:
    text: str
    kind: str = "heading"


@dataclass(frozen=True)
class Notes:
    entries: Sequence[str]
    kind: str = "notes"


@dataclass(frozen=True)
class Health:
    entries: Sequence[tuple[str, int]]
    kind: str = "health"


@dataclass(frozen=True)
class Verdict:
    name: str
    word: str
    sentence: str
    flags: Sequence[str]


@dataclass(frozen=True)
class Verdicts:
    entries: Sequence[Verdict]
    kind: str = "verdicts"


@dataclass(frozen=True)
class Row:
    cells: Sequence[str]
    base: bool = False


@dataclass(frozen=True)
class Table:
    """left: columns of words, wide: those of them that may wrap."""

    head: Sequence[str]
    rows: Sequence[Row]
    left: Sequence[int] = (0,)
    wide: Sequence[int] = ()
    kind: str = "table"


@dataclass(frozen=True)
class Picture:
    figure: Figure
    kind: str = "figure"


@dataclass(frozen=True)
class Code:
    text: str
    kind: str = "pre"


@dataclass(frozen=True)
class Folded:
    title: str
    blocks: Sequence[Block]
    kind: str = "folded"


@dataclass(frozen=True)
class Charts:
    """Interactive curves; json: what interactive.data gives."""

    json: str
    kind: str = "charts"


Block = Text | Heading | Notes | Health | Verdicts | Table | Picture | Charts | Code | Folded


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: Sequence[Block]
