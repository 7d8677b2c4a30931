"""The process of a user's command: its environment, the signals it receives, and its end with everything it started."""

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
GRACE_SECONDS = 60.0  # from the signal to the kill; Slurm's own grace is 30 s after SIGTERM, 120 s before a time limit
PACKAGES = ".python"  # in a run's folder: our only entry on the command's PYTHONPATH
ATTEMPT = "ABLATRIX_ATTEMPT"


class CommandProcess:
    """A command and everything it starts, which share a process group."""

    def __init__(self, spec: CommandSpec, run_dir: Path) -> None:
        self.spec, self.run_dir = spec, run_dir
        self.stop_time: float | None = None  # when the command was asked to stop
        self._child: subprocess.Popen[bytes] | None = None
        self._cleared = False  # nothing of it is left, and its process id may be reused

    def __enter__(self) -> CommandProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    @property
    def started(self) -> bool:
        return self._child is not None

    def start(self, words: Sequence[str], attempt: int) -> None:
        """Start the command. Raises OSError."""
        # blocked, because until the program starts, signals would run our handlers in the child
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
        """Return the job's environment without our code on PYTHONPATH, which could hide the command's own modules."""
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
        """Wait up to `seconds` for the exit code (negative for a signal); return None if the command still runs."""
        assert self._child is not None
        if self.stop_time is not None and time.monotonic() - self.stop_time > GRACE_SECONDS:
            self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(seconds)
        return None

    def stop(self, save: bool = True) -> None:
        """Ask the command to stop, with the signal on which it saves its state if there is one.

        Only the program receives that signal: its helper processes would die from it.
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
        """Kill what is left of the command and everything it has started."""
        if self._child is not None and not self._cleared:
            self._cleared = self._child.returncode is not None
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)


def _prepare_child() -> Callable[[], None]:
    """Return a `preexec_fn` that makes the child die with us, with no signal blocked or ignored."""
    end_with_us = processes.end_with_parent()

    def prepare() -> None:
        end_with_us()
        for number in (*STOP_SIGNALS, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    return prepare


def kill_leftovers(run_dir: Path, before: int) -> None:
    """Kill what is left on this machine of a run's attempts with numbers below `before`."""
    run, attempt = f"ABLATRIX_RUN_DIR={run_dir}".encode(), f"{ATTEMPT}=".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):  # already ended, or another user's
            words = (folder / "environ").read_bytes().split(b"\0")
            number = next((word.partition(b"=")[2] for word in words if word.startswith(attempt)), b"")
            if run in words and number.isdigit() and int(number) < before:
                os.kill(int(folder.name), signal.SIGKILL)
