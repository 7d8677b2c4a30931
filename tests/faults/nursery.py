"""Processes forked from one that has torch and the trainer loaded: a start takes 0.1 s instead of 2."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.faults import actions
from tests.faults.seccomp import Fault, Outcome, watch
from tests.support.waiting import PATIENCE

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.faults.nursery", "ablatrix.trainer.run"])
Call = tuple[Path, Callable[..., int], tuple[Any, ...]]  # the file for output, and a function that returns an exit code


class Nursery:
    """Use as a context manager: what it started has ended then."""

    def __init__(self) -> None:
        self.connection, theirs = SERVER.Pipe()
        SERVER.Process(target=_watch_all, args=(theirs,)).start()
        theirs.close()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    def start(self, target: Callable[..., int], *args: Any, log: Path) -> Child:
        """Fork a process that calls `target(*args)`, its output appended to `log`."""
        return Child((log, target, args))

    def watched(
        self, target: Callable[..., int], *args: Any, log: Path, fault: Fault, meanwhile: Call | None = None
    ) -> Outcome:
        """Run `target(*args)` in a forked process to its end, its system calls under `fault`.

        meanwhile: the process that runs from start to end while this one pauses.
        """
        self.connection.send(((log, target, args), fault, meanwhile))
        outcome: Outcome = self.connection.recv()
        return outcome


class Child:
    def __init__(self, call: Call) -> None:
        self.log = call[0]
        self.process = SERVER.Process(target=_run, args=(call,))
        self.process.start()

    def send(self, number: int) -> None:
        """A signal; nothing where the process has ended, which may happen after it was asked."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid or 0, number)

    def poll(self) -> int | None:
        """The exit code (negative: killed by that signal), None while it runs."""
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join(PATIENCE)
        code = self.poll()
        assert code is not None, f"still running: {self.log.read_text()[-2000:]}"
        return code


def _prepare(log: Path) -> None:
    """In the child: output to `log`, and an end when the tests end."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def _run(call: Call) -> None:
    log, target, args = call
    _prepare(log)
    sys.exit(target(*args))


def _watch_all(connection: Connection) -> None:
    """Answer each request of `Nursery.watched` with its outcome."""
    with tempfile.TemporaryDirectory() as folder:  # what is imported or read on first use, is now
        actions.warm_up(folder)
    while True:
        connection.send(_watch(*connection.recv()))


def _watch(call: Call, fault: Fault, meanwhile: Call | None) -> Outcome:
    log, target, args = call
    second = multiprocessing.get_context("fork").Process(target=_run, args=(meanwhile,))

    def run_second() -> None:
        second.start()
        second.join()

    return watch(lambda: target(*args), fault, prepare=lambda: _prepare(log), meanwhile=run_second)
