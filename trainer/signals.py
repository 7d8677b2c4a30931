"""Signals that ask a run to stop. Free of torch: installed before it is imported."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Interrupted(BaseException):
    """A signal came before training began. There is nothing to save, and no `except Exception` may swallow it."""


class StopSignals:
    """Notes SIGTERM, SIGINT and SIGUSR2. Until `training` is set, the first of them raises Interrupted."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.training = False

    def install(self) -> None:
        for signum in SIGNALS:
            signal.signal(signum, self._handle)

    def ignore(self) -> None:
        """The result is on disk: a signal during the interpreter's exit must not turn it into a failure."""
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = signum
        if first and not self.training:
            raise Interrupted

    @property
    def name(self) -> str:
        """`SIGUSR2`; empty where none was received."""
        return signal.Signals(self.received).name if self.received is not None else ""
