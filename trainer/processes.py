"""Which process of this machine a record speaks of: its id alone is given to another one later."""

from __future__ import annotations

import os
from pathlib import Path


def machine() -> str:
    """Equal for two processes only if one can see the other by its process id: same boot, same pid namespace."""
    try:
        return f"{_boot()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born(pid: int) -> str:
    """When a process started, in the kernel's ticks since boot; "" for one that is not there (or is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def identity(pid: int) -> str:
    """What no other process of this host ever has: its birth and the boot; "" for one that is not there."""
    ticks = born(pid)
    try:
        return f"{ticks} {_boot()[:8]}" if ticks else ""
    except OSError:
        return ""


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
