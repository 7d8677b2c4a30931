"""Processes of this machine: identity (a pid alone is reused), and children that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1


def machine() -> str:
    """Return a name that two processes share if one can see the other's process id: same boot, same pid namespace."""
    try:
        return f"{_boot()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def born(pid: int) -> str:
    """Return when a process started, in ticks since boot; "" if it does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def identity(pid: int) -> str:
    """Return an identity unique on this host, from the process's start and the boot; "" if it does not exist."""
    ticks = born(pid)
    try:
        return f"{ticks} {_boot()[:8]}" if ticks else ""
    except OSError:
        return ""


def end_with_parent(number: int = signal.SIGKILL) -> Callable[[], None]:
    """Return a `preexec_fn` by which a child gets signal `number` as soon as this process is gone, even by kill -9.

    Linux only; elsewhere the child lives on. The parent's main thread must start the child.
    """
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def prepare() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, number)
            if os.getppid() != parent:  # it died before the call
                os.kill(os.getpid(), signal.SIGKILL)

    return prepare


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
