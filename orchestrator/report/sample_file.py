"""Read a run's samples.txt, the text that its model generated."""

from __future__ import annotations

import re

HEADER = re.compile(r"^=== iter (\d+)\n", re.MULTILINE)
MOST_LETTERS = 1500


def last_sample(content: bytes) -> str:
    """Return the last sample in a samples.txt with the step at which it was drawn, '' if there is none."""
    text = content.decode("utf-8", "replace")
    found = list(HEADER.finditer(text))
    if not found:
        return ""
    sample = text[found[-1].end() :].strip("\n")
    cut = sample[:MOST_LETTERS] + ("\N{HORIZONTAL ELLIPSIS}" if len(sample) > MOST_LETTERS else "")
    return f"after step {found[-1][1]}:\n{cut}"
