"""Signals that ask a run to stop. Torch-free, because handlers are installed before torch is imported."""

from __future__ import annotations

import signal
from types import FrameType

from ablatrix.trainer.rundir import console

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Interrupted(BaseException):
    """A signal arrived before training began. Nothing needs saving, and no `except Exception` may swallow this."""


HINT = "stopping once a checkpoint is written; press Ctrl-C again to end the run at once"


class StopSignals:
    """Records SIGTERM, SIGINT and SIGUSR2. A second SIGINT (Ctrl-C) kills the process immediately.

    Until `raise_from_now_on` a signal is only recorded, because an exception during an import leaves modules half
    imported. After that, until `training` is set, the first signal raises Interrupted: reading a corpus may take long.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.raising = False
        self.training = False

    def install(self) -> None:
        """Install the signal handlers."""
        for signum in SIGNALS:
            signal.signal(signum, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the parent process may have blocked them

    def raise_from_now_on(self) -> None:
        """Raise Interrupted for a signal that has arrived or will arrive, now that all imports are done."""
        self.raising = True
        if self.received is not None:
            raise Interrupted

    def ignore(self) -> None:
        """Ignore signals from now on: the result is on disk, and a clean exit must not become a failure."""
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = signum
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # works even while no Python code runs, as during a long step
            if self.training:
                console.complain(HINT)
        if first and self.raising and not self.training:
            raise Interrupted

    @property
    def name(self) -> str:
        """Name of the received signal, such as `SIGUSR2`; empty if none."""
        return signal.Signals(self.received).name if self.received is not None else ""
