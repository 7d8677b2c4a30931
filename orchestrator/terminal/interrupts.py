"""Ctrl-C and closed terminals: one sentence each, never a traceback. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_INTERRUPTED = 130
RERUN = "interrupted; rerun the command: nothing is queued or run twice"


class Interrupted(BaseException):
    """Ctrl-C. Not an Exception, so that no error handler swallows it."""


def raise_on_ctrl_c() -> None:
    """Make the first Ctrl-C raise Interrupted; a second one ends the process at once."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored for `command &` in a script
        signal.signal(signal.SIGINT, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise Interrupted(RERUN)


@contextlib.contextmanager
def explained(sentence: str) -> Iterator[None]:
    """Print this sentence if Ctrl-C is pressed in the block."""
    try:
        yield
    except Interrupted:
        raise Interrupted(sentence) from None


@contextlib.contextmanager
def surviving_hangup() -> Iterator[None]:
    """Keep this process alive, without output, if the terminal is closed (SIGHUP) in the block."""
    handler = signal.getsignal(signal.SIGHUP)
    if handler is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: drop_output())
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, handler)


def ignoring_lost_output(call: Callable[[], object]) -> None:
    """Call a function that prints; if the reader is gone (EIO, EPIPE), drop all further output."""
    try:
        call()
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE):
            raise
        drop_output()


def drop_output() -> None:
    """Send output for a terminal or a pipe to /dev/null; files are still written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            kind = os.fstat(descriptor).st_mode
            if stat.S_ISCHR(kind) or stat.S_ISFIFO(kind):
                os.dup2(nowhere, descriptor)
    os.close(nowhere)
