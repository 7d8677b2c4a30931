"""Printing to the user's terminal: control characters in untrusted text are shown, not interpreted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ablatrix.trainer.rundir.console import visible

MOST_NAMES = 4  # listed in a message
PIPED_WIDTH = 10_000  # columns; nothing is wrapped or cut in a pipe
_COLOR = re.compile(r"\x1b\[[0-9;:]*m")


class Terminal(Console):
    """A console without markup, emoji codes and highlighting, which makes control characters in text visible."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Reraise the BrokenPipeError that is being handled; Rich would exit, which would also end local runs."""
        raise

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Make control characters visible, except in Rich's own control segments, such as those of a live table."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else visible(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)


def open_console(*, of_errors: bool = False) -> Terminal:
    """Return the console of stdout, or of stderr if stdout is for JSON."""
    console = Terminal(stderr=of_errors)
    return console if console.is_terminal else Terminal(width=PIPED_WIDTH, stderr=of_errors)


def print_json(record: Mapping[str, Any] | Sequence[Any]) -> None:
    """Print the output of `--json`; docs/automation.md describes the fields."""
    print(json.dumps(record, indent=1, allow_nan=False))


def list_names(names: Sequence[str]) -> str:
    """Return a list of at most MOST_NAMES names, such as `a, b, c, d and 3 more`."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def log_text(text: str) -> str:
    """Return a program's output without colors, and with each state of a progress bar on its own line."""
    return visible(_COLOR.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))
