"""Words that act where they are not taken for words: in HTML, in Markdown, in spreadsheets, on terminals.

Each that gets to act in a page sets `window.canary`, changes the title, or asks for something at canary.invalid.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

ACT = "window.canary=1;document.title='canary'"
AWAY = "https://canary.invalid/x"
HTML = (
    f"<script>{ACT}</script>",
    f"<script src={AWAY}></script>",
    f'<img src={AWAY} onerror="{ACT}">',
    f"<img src=x onerror={ACT}>",
    f'<svg onload="{ACT}"><animate onbegin={ACT}>',
    f"<svg><script>{ACT}</script></svg>",
    f"</style><script>{ACT}</script><style>",
    f"</title><script>{ACT}</script>",
    f"</script><script>{ACT}</script>",
    f"</pre></textarea></svg></math><script>{ACT}</script>",
    f"--><script>{ACT}</script><!--",
    f"]]><script>{ACT}</script>",
    f'" onmouseover="{ACT}" autofocus onfocus="{ACT}" x="',
    f"' onmouseover='{ACT}' autofocus onfocus='{ACT}' x='",
    f"` onmouseover=`{ACT}`",
    f'<a href="javascript:{ACT}" autofocus>x</a>',
    f'<iframe src="javascript:parent.{ACT}"></iframe>',
    f'<iframe srcdoc="<script>parent.{ACT}</script>"></iframe>',
    f"<object data={AWAY}></object><embed src={AWAY}>",
    f"<link rel=stylesheet href={AWAY}><style>@import '{AWAY}';*{{background:url({AWAY})}}</style>",
    f'<p style="background:url({AWAY})">x</p>',
    f'<meta http-equiv=refresh content="0;url={AWAY}"><base href={AWAY}>',
    f"<form action={AWAY}><input autofocus onfocus={ACT}></form>",
    f"<details open ontoggle={ACT}>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={ACT}>",
    f"&lt;script&gt;{ACT}&lt;/script&gt;",
    f"&amp;lt;script&amp;gt;{ACT}&amp;lt;/script&amp;gt;",
    f"&#60;img src=x onerror={ACT}&#62;",
    f"\\u003cscript\\u003e{ACT}\\u003c/script\\u003e",
    f"\uff1cscript\uff1e{ACT}\uff1c/script\uff1e",
    f"<scr\0ipt>{ACT}</scr\0ipt>",
    f"\u202e<script>{ACT}</script>\u2066",
    "{{7*7}}{% raw %}${7*7}#{7*7}<%= 7*7 %>",
    "{{ self.__init__.__globals__ }}",
    "\u2028alert(1)\u2029//",
    f"[x](javascript:{ACT})![x]({AWAY})<{AWAY}>",
    f"```\n<script>{ACT}</script>\n```",
    f"\n\n    code\n\n---\n# h\n1. a\n- b\n| a | b |\n<b>{ACT}</b>",
    "\ud800 half \udfff",
    "$\\input{/etc/passwd}$ \\write18{id} ^^5c %",
)
# Characters that act on whoever sees them
ACTING = [*map(chr, (*range(9), *range(11, 32), *range(127, 160)))]
ACTING += [*map(chr, (0x61C, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF))]
TERMINAL = (
    "\x1b]0;canary\x07",
    "\x1b]52;c;Y2FuYXJ5\x07",
    "\x1b]8;;https://canary.invalid\x1b\\link\x1b]8;;\x1b\\",
    "\x1b[2J\x1b[H\x1b[31mred\x1b[8mhidden",
    "\x9b31m\x9d0;canary\x9c",
    "\x1bP+q544e\x1b\\\x1b[6n\x1b[c\x1b#8\x1bc",
    "right\rleft\x08\x08\x08\x7f",
    "\u202etxt.exe\u2066\u200b",
    "[bold red]x[/bold red][link=https://canary.invalid]y[/link][/]",
    ":bomb: [blink]x",
    "\udc80\ud800",
)
FORMULAS = (
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("https://canary.invalid","x")',
    "+1+cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "\t=1+1",
    "\r=1+1",
    "\n=1+1",
    " =1+1",
    '"=1+1"',
    "'=1+1",
    "\N{NO-BREAK SPACE}=1+1",
    "\N{FULLWIDTH EQUALS SIGN}1+1",
    "\N{FULLWIDTH PLUS SIGN}1+1",
    "\N{FULLWIDTH HYPHEN-MINUS}1+1",
    "\N{FULLWIDTH COMMERCIAL AT}SUM(1)",
    "\N{SMALL EQUALS SIGN}1+1",
    "\N{ZERO WIDTH NO-BREAK SPACE}=1+1",
    "\N{ZERO WIDTH JOINER}=1+1",
    "x;=1+1",
    "x\t@SUM(1)",
    "x\n=1+1",
)


class Skeleton(HTMLParser):
    """What a page consists of besides its words."""

    FREE = ("title", "aria-label")  # attributes that hold words

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.title = ""
        self._within = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kept = ((name, "" if name in self.FREE else value) for name, value in attrs)
        self.tags.append((tag, tuple(kept)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        (self.scripts if self._within == "script" else self.words).append(data)
        if self._within == "title" and not self.title:
            self.title = " ".join(data.split())

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment", ()))

    @property
    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        """Elements and the names of their attributes."""
        return [(tag, tuple(name for name, _ in attrs)) for tag, attrs in self.tags]

    def require_harmless(self) -> None:
        """No handler, no style attribute, nothing that is fetched, no script but data and what the policy names."""
        for tag, attrs in self.tags:
            assert tag not in ("iframe", "object", "embed", "base", "form", "input", "img", "image", "audio", "video")
            for name, value in attrs:
                assert not name.startswith("on") and name not in ("style", "srcdoc", "action", "formaction", "src")
                if "href" in name:
                    assert value == "data:," or (value or "").startswith("#m"), (tag, name, value)
                assert not (tag == "meta" and value == "refresh")


def leaves(tree: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all strings in a JSON value."""
    if isinstance(tree, str):
        yield place
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from leaves(value, (*place, name))
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from leaves(value, (*place, number))


def put(tree: Any, place: tuple[Any, ...], value: Any) -> None:
    for step in place[:-1]:
        tree = tree[step]
    tree[place[-1]] = value


def spoil(path: Path, word: Callable[[], str], chance: random.Random, share: float, kept: tuple[str, ...] = ()) -> int:
    """Replace a share of the strings in a JSON file, those under `kept` excepted; how many were replaced."""
    tree = json.loads(path.read_text())
    places = [place for place in leaves(tree) if not set(place) & set(kept) and chance.random() < share]
    for place in places:
        put(tree, place, word())
    path.write_text(json.dumps(tree))
    return len(places)
