"""report.html: one file that opens anywhere and asks nobody for anything."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ablatrix.orchestrator.report import svg
from ablatrix.orchestrator.report.content import Section
from ablatrix.trainer.rundir.console import visible

_TOGETHER = re.compile(r"p [=<] [\d.]+|\S+ to \S+\d|[\d.]+ nats|\d+ runs?|\d+ of \d+")
TEMPLATES = Path(__file__).parent / "templates"


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(TEMPLATES)
    made = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    made.finalize = lambda value: value if isinstance(value, Markup) else visible(str(value))
    made.globals["draw"] = lambda figure: Markup(svg.render(figure))
    made.filters["slug"] = lambda word: word.replace(" ", "-")
    made.filters["joined"] = lambda text: _TOGETHER.sub(lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)
    return made


def render(
    title: str, subtitle: str, sections: Sequence[Section], scripts: Sequence[str] = (), more_css: str = ""
) -> str:
    """The whole page. scripts: JavaScript to inline; each is allowed by its hash and nothing else may run."""
    css = more_css + (TEMPLATES / "report.css").read_text(encoding="utf-8")
    inlined = "".join(f"<script>{script}</script>" for script in scripts)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            subtitle=subtitle,
            sections=sections,
            policy=Markup(policy([css], scripts)),
            css=Markup(css),
            symbols=Markup(svg.symbols()),
            scripts=Markup(inlined),
        )
    )


def policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """A content security policy that allows what the page holds, by hash, and no request at all."""
    rules = ["default-src 'none'", "base-uri 'none'", "form-action 'none'", "img-src data:"]
    rules.append("style-src " + " ".join(map(_hash, styles)))
    if scripts:
        rules.append("script-src " + " ".join(map(_hash, scripts)))
    return "; ".join(rules)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
