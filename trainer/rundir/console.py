"""Words to the user that must never end a run: its log may lie on the disk that is failing. Free of torch."""

from __future__ import annotations

import contextlib
import os
import re
import sys

# C0 and C1 control characters, which terminals obey; tabs and line feeds apart
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """Return the text with each control character written out, as `\\x1b`."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


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
