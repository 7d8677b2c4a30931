"""The process of a user's command: its environment, the signals it gets, and its end with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.trainer.rundir import processes
from ablatrix.trainer.rundir.program import ROOT

if TYPE_CHECKING:
    from ablatrix.orchestrator.job.command_spec import CommandSpec

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
GRACE_SECONDS = 60.0  # from the signal to the kill; Slurm's own is 30 s after SIGTERM, and 120 s before a time limit
PACKAGES = ".python"  # in a run's folder: the only entry of ours on the command's PYTHONPATH
ATTEMPT = "ABLATRIX_ATTEMPT"


class CommandProcess:
    """A command and everything that it starts, which share a process group."""

    def __init__(self, spec: CommandSpec, run_dir: Path) -> None:
        self.spec, self.run_dir = spec, run_dir
        self.stop_time: float | None = None  # when the command was asked to stop
        self._child: subprocess.Popen[bytes] | None = None
        self._cleared = False  # nothing of it is left: its process id may be another's

    def __enter__(self) -> CommandProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    @property
    def started(self) -> bool:
        return self._child is not None

    def start(self, words: Sequence[str], attempt: int) -> None:
        """Start the command. Raises OSError."""
        # until it has started the child would answer signals with our handlers: they are held back
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._child = subprocess.Popen(
                words,
                cwd=self.spec.workdir,
                env=self._environment(attempt),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_prepare_child(),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _environment(self, attempt: int) -> dict[str, str]:
        """The job's environment without our code on PYTHONPATH, which could hide the command's own modules."""
        code, env = os.path.realpath(ROOT), self.spec.env
        entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        path = [
            env.get("PYTHONPATH", ""),
            *(entry for entry in entries if entry and os.path.realpath(entry) != code),
            str(self.run_dir / PACKAGES),
        ]
        return {
            **os.environ,
            "ABLATRIX_RUN_DIR": str(self.run_dir),
            ATTEMPT: str(attempt),
            "ABLATRIX_SEED": str(self.spec.seed),
            "ABLATRIX_ON_SIGNAL": self.spec.on_signal,
            **env,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }

    def wait(self, seconds: float) -> int | None:
        """Wait so long for the exit code, negative for a signal; None while the command runs."""
        assert self._child is not None
        if self.stop_time is not None and time.monotonic() - self.stop_time > GRACE_SECONDS:
            self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(seconds)
        return None

    def stop(self, save: bool = True) -> None:
        """Ask the command to stop, by the signal by which it saves its state if it has one.

        That signal goes to the program alone: its helper processes would die of it.
        """
        self.stop_time = time.monotonic()
        if self._child is None or self._child.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if save and self.spec.saves_state:
                self._child.send_signal(signal.Signals[f"SIG{self.spec.on_signal}"])
            else:
                os.killpg(self._child.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End what is left of the command and of everything it has started."""
        if self._child is not None and not self._cleared:
            self._cleared = self._child.returncode is not None
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)


def _prepare_child() -> Callable[[], None]:
    """Return a `preexec_fn`: the child dies with us, and no signal is held back or ignored."""
    end_with_us = processes.end_with_parent()

    def prepare() -> None:
        end_with_us()
        for number in (*STOP_SIGNALS, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    return prepare


def kill_leftovers(run_dir: Path, before: int) -> None:
    """Kill what is left on this machine of attempts at a run with a number lower than `before`."""
    run, attempt = f"ABLATRIX_RUN_DIR={run_dir}".encode(), f"{ATTEMPT}=".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # already gone, or another user's
            words = (folder / "environ").read_bytes().split(b"\0")
            number = next((word.partition(b"=")[2] for word in words if word.startswith(attempt)), b"")
            if run in words and number.isdigit() and int(number) < before:
                os.kill(int(folder.name), signal.SIGKILL)
