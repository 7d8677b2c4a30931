"""Signals that ask a run to stop. Free of torch: installed before it is imported."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Interrupted(BaseException):
    """A signal came before training began. There is nothing to save, and no `except Exception` may swallow it."""


class StopSignals:
    """Notes SIGTERM, SIGINT and SIGUSR2.

    Before `wait_for_them` a signal is only noted, because an exception within an import leaves modules half made. From
    then on until `training` is set, the first of them raises Interrupted: reading a large corpus may take long.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.raising = False
        self.training = False

    def install(self) -> None:
        for signum in SIGNALS:
            signal.signal(signum, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # whoever started us may have held them back until now

    def wait_for_them(self) -> None:
        """The imports are over: raise Interrupted for the signal that has come, or when one comes."""
        self.raising = True
        if self.received is not None:
            raise Interrupted

    def ignore(self) -> None:
        """The result is on disk: a signal during the interpreter's exit must not turn it into a failure."""
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = signum
        if first and self.raising and not self.training:
            raise Interrupted

    @property
    def name(self) -> str:
        """`SIGUSR2`; empty where none was received."""
        return signal.Signals(self.received).name if self.received is not None else ""
