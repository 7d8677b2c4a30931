"""Processes of this machine: identities (pids get reused), and children that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1


def born(pid: int) -> str:
    """Return the start time of a process in ticks since boot, "" if it does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def identity(pid: int) -> str:
    """Return an identity that is unique on this host, from process start and boot; "" if the process does not exist."""
    ticks = born(pid)
    try:
        return f"{ticks} {Path('/proc/sys/kernel/random/boot_id').read_text()[:8]}" if ticks else ""
    except OSError:  # some containers hide it
        return ""


def end_with_parent(number: int = signal.SIGKILL) -> Callable[[], None]:
    """Return a `preexec_fn` that sends the child signal `number` when this process ends, even by kill -9.

    Linux only; elsewhere the child lives on. The parent's main thread must start the child.
    """
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, number)
            if os.getppid() != parent:  # the parent died before the call
                os.kill(os.getpid(), signal.SIGKILL)

    return prepare
