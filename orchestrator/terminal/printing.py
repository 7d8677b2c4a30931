"""What is shown on the user's terminal: text that others wrote shows, and does nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ablatrix.trainer.rundir.console import visible

_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")


class Terminal(Console):
    """A console without markup, emoji codes and highlights, on which the control characters of others show."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError that is being handled: Rich would end the process, and local runs with it."""
        raise

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Rich's own control sequences, such as those of a live table, are segments of their own."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else visible(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)


def log_text(text: str) -> str:
    """What a program has printed: without its colours, and a line for each state of a bar that overwrites itself."""
    return visible(_COLOUR.sub("", text).replace("\r\n", "\n").replace("\r", "\n"))
