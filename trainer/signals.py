"""Signals that ask a run to stop. Torch-free: installed before it is imported."""

from __future__ import annotations

import signal
from types import FrameType

from ablatrix.trainer.rundir import console

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Interrupted(BaseException):
    """A signal came before training began. Nothing needs saving, and no `except Exception` may swallow it."""


HINT = "stopping: a checkpoint is written first; Ctrl-C once more ends the run at once"


class StopSignals:
    """Records SIGTERM, SIGINT and SIGUSR2. A second SIGINT, a second Ctrl-C, ends the process at once.

    Until `raise_from_now_on` a signal is only recorded, because an exception within an import leaves modules half
    imported. From then on until `training` is set, the first one raises Interrupted: reading a corpus may take long.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.raising = False
        self.training = False

    def install(self) -> None:
        """Handle the signals from now on."""
        for signum in SIGNALS:
            signal.signal(signum, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the parent process may have blocked them until now

    def raise_from_now_on(self) -> None:
        """Raise Interrupted for a signal that has come or will come, once all imports are done."""
        self.raising = True
        if self.received is not None:
            raise Interrupted

    def ignore(self) -> None:
        """Ignore signals from now on: the result is on disk, and the exit must not turn into a failure."""
        for signum in SIGNALS:
            signal.signal(signum, signal.SIG_IGN)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self.received is None
        self.received = signum
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # also while no Python code runs, as within a long step
            if self.training:
                console.complain(HINT)
        if first and self.raising and not self.training:
            raise Interrupted

    @property
    def name(self) -> str:
        """The signal received, such as `SIGUSR2`; empty if none."""
        return signal.Signals(self.received).name if self.received is not None else ""
