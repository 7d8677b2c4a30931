"""Words to the user that must never end a run: its log may lie on the disk that is failing. Free of torch."""

from __future__ import annotations

import contextlib
import os
import re
import sys

# Characters that act instead of showing: on a terminal (C0 and C1 controls), on the order in which others are shown
# (bidirectional controls), without a trace (no-width blanks, tags), or on whoever encodes them (half surrogate pairs)
_ACTING = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    """The text with each character that acts instead of showing written out: `\\x1b`. Line ends and tabs stay."""
    return _ACTING.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def say(text: str) -> None:
    """One line to stdout, at once. Nothing happens where it cannot be written."""
    with contextlib.suppress(OSError):
        print(visible(text), flush=True)


def complain(text: str) -> None:
    """One line to stderr, likewise."""
    with contextlib.suppress(OSError):
        print(visible(text), file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A line to stderr about something that went wrong and was dealt with."""
    complain(f"warning: {text}")


def settle() -> None:
    """Before the process exits: what could not be written is dropped, or Python would exit with code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
