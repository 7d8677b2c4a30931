"""report.md: the same content as the page, with the PNG figures beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ablatrix.orchestrator.report.content import (
    Block,
    Charts,
    Code,
    Folded,
    Heading,
    Health,
    Notes,
    Picture,
    Section,
    Table,
    Text,
    Verdicts,
)
from ablatrix.trainer.rundir.console import visible

# What Markdown or HTML inside it would take for markup
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$&])")
_AT_START = re.compile(r"[-+=]|\d+[.)]")  # of a paragraph: a list, or the line under a heading


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole file."""
    lines = [f"# {text(title)}", "", text(subtitle), ""]
    for section in sections:
        lines += [f"## {text(section.title)}", ""]
        for block in section.blocks:
            lines += [*_block(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def text(value: str) -> str:
    """A value as Markdown that shows it and nothing else."""
    return _SPECIAL.sub(r"\\\1", visible(" ".join(value.split())))


def paragraph(value: str) -> str:
    """The same where a line begins."""
    shown = text(value)
    start = _AT_START.match(shown)
    return f"{shown[: start.end() - 1]}\\{shown[start.end() - 1 :]}" if start else shown


def _block(block: Block) -> list[str]:
    match block:
        case Text():
            return [paragraph(block.text)]
        case Heading():
            return [f"### {text(block.text)}"]
        case Notes():
            return [f"- {paragraph(entry)}" for entry in block.entries]
        case Health():
            return [", ".join(f"**{count}** {text(state)}" for state, count in block.entries)]
        case Verdicts():
            return [
                f"- **{text(v.name)}** – {text(v.sentence)}" + (f" *({text('; '.join(v.flags))})*" if v.flags else "")
                for v in block.entries
            ]
        case Table():
            return _table(block)
        case Picture():
            return [f"![{text(block.figure.title)}]({block.figure.name}.png)", "", text(block.figure.caption)]
        case Charts():
            return ["Curves to zoom into are in report.html."]
        case Code():
            code = visible(block.text)
            fence = "`" * (2 + max(map(len, re.findall("`+", code)), default=1))  # longer than any in the text
            return [f"{fence}sh", code, fence]
        case Folded():
            inner = [line for b in block.blocks for line in [*_block(b), ""]]
            return ["<details>", f"<summary>{text(block.title)}</summary>", "", *inner, "</details>"]


def _table(table: Table) -> list[str]:
    head = "| " + " | ".join(text(h) for h in table.head) + " |"
    rule = "|" + "|".join(":--" if i in table.left else "--:" for i in range(len(table.head))) + "|"
    return [head, rule, *("| " + " | ".join(text(c) for c in row.cells) + " |" for row in table.rows)]
