"""Logging and messages that never end a run: the log may be on the disk that is failing. Torch-free."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from typing import TextIO

# C0 and C1 control characters, which terminals obey (except tabs and line feeds); bytes of paths that are not UTF-8
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(text: str) -> str:
    """Return the text with each control character escaped, as in `\\x1b`."""
    return text if text.isprintable() else _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def start_logging(rank: int = 0, world: int = 1) -> None:
    """Log with time and level, and with the rank if there are several processes."""
    where = f" [rank {rank}]" if world > 1 else ""
    _write_log(f"%(asctime)s %(levelname)s{where} %(message)s", logging.INFO)


def start_command_logging() -> None:
    """Log a command's warnings to stderr."""
    _write_log("warning: %(message)s", logging.WARNING)


def _write_log(line: str, level: int) -> None:
    handler, logger = _Handler(), logging.getLogger("ablatrix")
    handler.setFormatter(_Formatter(line, "%Y-%m-%d %H:%M:%S"))
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level)


def say(text: str) -> None:
    """Print a line to stdout; write errors are ignored."""
    with contextlib.suppress(OSError, UnicodeError):
        print(visible(text), flush=True)


def complain(text: str) -> None:
    """Print a line to stderr; write errors are ignored."""
    with contextlib.suppress(OSError, UnicodeError):
        print(visible(text), file=sys.stderr, flush=True)


def flush_or_drop() -> None:
    """Flush before the process exits, dropping what cannot be written: otherwise Python would exit with code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


class _Handler(logging.StreamHandler[TextIO]):
    """Send warnings and errors to stderr, everything else to stdout; what cannot be written is dropped."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def count(number: int, noun: str) -> str:
    """Return `1 run` or `3 runs`."""
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"
