"""Dividing work between processes on any hosts that share a folder, by mkdir: flock does nothing on many clusters.

A claim says who is at work, so that others take something else. It is never what makes a result right: results appear
by an atomic rename and are the same whoever makes them, so that a claim taken over too early costs time only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BEAT_SECONDS = 5.0  # between two signs of life
STALE_SECONDS = 60.0  # without one, by the clock of the process that waits: the hosts' clocks may differ
OWNER = "owner.json"


class Claims:
    """The claims that this process holds in one folder, with their heartbeat. Use as a context manager."""

    def __init__(self, folder: Path, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> None:
        self.folder, self.beat, self.stale = folder, beat, stale
        self._held: set[str] = set()
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Claims:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        for name in list(self._held):
            self.release(name)

    def acquire(self, name: str, take_over: bool = False) -> bool:
        """Claim `name`; False where somebody else has it. take_over: also from an owner that died.

        Raises FileNotFoundError where the folder of all claims is gone: the work is done.
        """
        path = self.folder / name
        if not self._make(path) and not (
            take_over and self._is_stale(name) and self._discard(path) and self._make(path)
        ):
            return False
        self._held.add(name)
        self._write(name, 0)
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
            self._thread.start()
        return True

    def release(self, name: str) -> None:
        """Give a claim back."""
        self._held.discard(name)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    @contextlib.contextmanager
    def holding(self, name: str, take_over: bool = False) -> Iterator[bool]:
        """Hold a claim for the length of a block; the value says whether we got it."""
        got = self.acquire(name, take_over)
        try:
            yield got
        finally:
            if got:
                self.release(name)

    def owner(self, name: str) -> str:
        """`host (process 123)` of whoever holds a claim, for people; "" where nobody can be named."""
        record = _parse(self._read(name))
        return f"{record['host']} (process {record['pid']})" if "host" in record and "pid" in record else ""

    def _make(self, path: Path) -> bool:
        try:
            path.mkdir()
        except FileExistsError:
            return False
        return True

    def _is_stale(self, name: str) -> bool:
        now, raw = time.monotonic(), self._read(name)
        before, since = self._seen.get(name, (None, now))
        if raw != before:
            self._seen[name], since = (raw, now), now
        return _died(_parse(raw)) or now - since > self.stale

    def _discard(self, path: Path) -> bool:
        """Take a dead owner's claim away: of several that try, the rename lets one succeed."""
        grave = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.rename(grave)
        except OSError:
            return False
        shutil.rmtree(grave, ignore_errors=True)
        return True

    def _beat_on(self) -> None:
        count = 0
        while not self._stop.wait(self.beat):
            count += 1
            for name in list(self._held):
                self._write(name, count)

    def _write(self, name: str, count: int) -> None:
        record = {**_myself(), "beat": count}
        with contextlib.suppress(OSError):  # taken over, or the work is done and its folder gone
            (self.folder / name / OWNER).write_text(json.dumps(record))

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name / OWNER).read_bytes()
        except OSError:
            return b""


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _myself() -> dict[str, Any]:
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "born": _born(pid)}


def _machine() -> str:
    """Equal for two processes only if one can see the other by its process id: same boot, same pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process started, in the kernel's ticks; "" for one that is not there (or is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _died(owner: dict[str, Any]) -> bool:
    """Known to be dead: a process of this very machine that is there no more. Of others nothing is known."""
    machine = _machine()
    return bool(machine) and owner.get("machine") == machine and owner.get("born") != _born(int(owner.get("pid", 0)))
