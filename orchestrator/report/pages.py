"""Write sections as report.html, a self-contained page that makes no network requests, and as report.md."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from markupsafe import escape as escape_html

from ablatrix.orchestrator.report import palette
from ablatrix.orchestrator.report.content import Block, Folded, Link, Section, Table
from ablatrix.orchestrator.report.figure_data import Figure, Forest, ForestRow, Line
from ablatrix.trainer.rundir.console import visible

TEMPLATES = Path(__file__).parent / "templates"
# Phrases that must not be broken at the end of a line
_UNBROKEN = re.compile(r"p [=<] [\d.]+|\S+ to \S+\d|[\d.]+ nats|\d+ runs?|\d+ of \d+| ×")
_WORD_ENDS = re.compile(r"(?<=[_+.@/-])(?=\w)")  # places in a name where a line may break
_CODE = re.compile(r"`([^`]+)`")
# Markdown markup, and HTML markup inside Markdown
_SPECIAL = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_{}[]<>|#~$&"})
_AT_START = re.compile(r"[-+=]|\d+[.)]")  # starts a list, or underlines a heading


def html(title: str, lead: str, subtitle: str, sections: Sequence[Section], pictures: Mapping[str, str]) -> str:
    """Return the page. lead: the result in one sentence; pictures: name of a figure -> inline SVG.

    Its security policy allows only its own style sheet and script, by their hashes.
    """
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8") + dark_colors()
    script = (TEMPLATES / "hover.js").read_text(encoding="utf-8")
    policy = "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
    policy += f"style-src {_hash(css)}; script-src {_hash(script)}"
    return _template("report.html.j2", visible, link_html).render(
        title=title,
        lead=lead,
        subtitle=subtitle,
        sections=sections,
        pictures={name: Markup(svg) for name, svg in pictures.items()},
        curves={figure.name: hover_data(figure) for figure in _figures(sections) if figure.panels},
        policy=Markup(policy),
        css=Markup(css),
        script=Markup(script),
    )


def markdown(title: str, lead: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the same content as Markdown, which links to the PNG figures next to it."""
    page = _template("report.md.j2", escape_markdown, link_markdown).render(
        title=title, lead=lead, subtitle=subtitle, sections=sections
    )
    return str(page).rstrip() + "\n"


@cache
def _template(name: str, escape: Callable[[str], str], link: Callable[[Link], Markup]) -> Template:
    """Return a template that escapes every value."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else escape(str(value)),
    )
    filters: dict[str, Callable[..., Any]] = {
        "kind": lambda block: type(block).__name__.lower(),
        "slug": lambda word: word.replace(" ", "-"),
        "unbroken": lambda text: _UNBROKEN.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text),
        "breakable": break_name,
        "percent": lambda value, forest: f"{100 * forest.place(value):.2f}%",
        "share": lambda band, forest: f"{100 * (forest.place(band) - forest.place(-band)):.2f}%",
        "ticks": label_ticks,
        "cut_ends": cut_ends,
        "classes": cell_classes,
        "linked": lambda cell: link(cell) if isinstance(cell, Link) else cell,
        "with_code": mark_code,
        "paragraph": escape_paragraph,
        "fenced": fence,
        "quoted": lambda text: fence(text, ""),
    }
    made.filters |= filters
    return made.get_template(name)


def label_ticks(forest: Forest) -> list[tuple[float, str]]:
    """Return the ticks of a forest plot's axis with their labels, without those that would leave the axis."""
    return [(tick, text) for tick, text in palette.label_ticks(forest.limits) if 0.03 < forest.place(tick) < 0.97]


def cut_ends(row: ForestRow, forest: Forest) -> list[tuple[str, str]]:
    """Return (place, path) of an arrow head for each end of the intervals that the axis does not show."""
    arrows = ("0%", "M0 0L6 -4V4Z"), ("100%", "M0 0L-6 -4V4Z")
    return [arrow for arrow, cut in zip(arrows, forest.cut(row), strict=True) if cut]


def cell_classes(table: Table) -> list[Markup]:
    """Return the class attribute of the cells in each column."""
    words = ["w" if i in table.wide else "l" if i in table.left else "" for i in range(len(table.head))]
    return [Markup(f' class="{word}"' if word else "") for word in words]


def link_html(cell: Link) -> Markup:
    return Markup('<a href="{}">{}</a>').format(visible(cell.href), visible(cell))


def link_markdown(cell: Link) -> Markup:
    return Markup(f"[{escape_markdown(cell)}]({cell.href})")


@lru_cache(maxsize=10_000)
def break_name(name: str) -> Markup:
    """Return a name, which every table has, with the places where a line may break."""
    return Markup(_WORD_ENDS.sub("<wbr>", str(escape_html(visible(name)))))


def mark_code(text: str) -> Markup:
    """Return a sentence as HTML, in which text between backticks is code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape_html(visible(text)))))


def escape_markdown(text: str) -> Markup:
    """Return Markdown that renders as exactly this text."""
    return Markup(visible(" ".join(text.split())).translate(_SPECIAL))


def escape_paragraph(text: str) -> Markup:
    """Return `escape_markdown` of text at the beginning of a line."""
    shown = escape_markdown(text)
    start = _AT_START.match(shown)
    return Markup(f"{shown[: start.end() - 1]}\\{shown[start.end() - 1 :]}") if start else shown


def fence(code: str, language: str = "sh") -> Markup:
    """Return a Markdown code block with a fence longer than any in the code."""
    code = visible(code)
    ticks = "`" * (2 + max(map(len, re.findall("`+", code)), default=1))
    return Markup(f"{ticks}{language}\n{code}\n{ticks}")


def dark_colors() -> str:
    """Return CSS rules that replace the colors of the figures on a dark page.

    Selectors have no ancestor part: markers repeated by <use> have no ancestor to match.
    """
    pairs = [(part, *colors) for colors in palette.DARK.items() for part in ("fill", "stroke")]
    rules = [f'[{part}="{light}"] {{ {part}: {dark}; }}' for part, light, dark in pairs]
    return "@media screen and (prefers-color-scheme: dark) {\n" + "\n".join(rules) + "\n}\n"


def hover_data(figure: Figure) -> list[dict[str, Any]]:
    """Return what hover.js needs of each panel: axis ranges, and the points of every line to six digits."""
    return [
        {
            "axis": panel.x_label,
            **({"log": True} if panel.log_ticks else {}),
            "x": panel.x_range,
            "y": panel.y_range,
            "lines": [_points(line) for line in panel.lines],
        }
        for panel in figure.panels
    ]


def _points(line: Line) -> dict[str, Any]:
    known = np.isfinite(line.series.y)
    x, y = ([float(f"{v:.6g}") for v in values[known].tolist()] for values in (line.series.x, line.series.y))
    return {"label": visible(line.label), "x": x, "y": y}


def _figures(sections: Sequence[Section]) -> Iterator[Figure]:
    blocks: list[Block] = [block for section in sections for block in section.blocks]
    for block in blocks:
        if isinstance(block, Figure):
            yield block
        elif isinstance(block, Folded):
            blocks += block.blocks


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
