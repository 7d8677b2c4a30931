"""Claims that divide work between processes on hosts that share a folder; file locks do nothing on many clusters.

A claim is a file that is created exclusively, which succeeds for only one process on every file system. Its owner
rewrites it every few seconds; a claim that has not changed for a minute, or whose owner is known to be dead, is taken
over. A claim only tells others to work on something else: results appear by atomic rename and do not depend on which
process creates them, so taking over a claim too early only costs time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from ablatrix.trainer.rundir import files
from ablatrix.trainer.rundir.owners import owner_name
from ablatrix.trainer.rundir.processes import identity

BEAT_SECONDS = 5.0  # between two heartbeats
STALE_SECONDS = 60.0  # without a heartbeat, by the clock of the waiting process, since hosts' clocks may differ
NOT_PERMITTED = (errno.EPERM, errno.EACCES)


class Owner(BaseModel):
    """Content of a claim: the process that holds it, a unique token, and a heartbeat counter."""

    host: str
    pid: int
    born: str
    token: str
    beat: int = 0

    def is_dead(self) -> bool:
        """True if this is a process of this host that has ended; False for other hosts, where this is unknown."""
        return self.host == socket.gethostname() and self.born != identity(self.pid)


class Claims:
    """The claims that this process holds in one folder, and their heartbeat. Use as a context manager."""

    def __init__(self, folder: Path, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> None:
        self.folder, self.beat, self.stale = folder, beat, stale
        pid = os.getpid()
        self._owner = Owner(host=socket.gethostname(), pid=pid, born=identity(pid), token=uuid.uuid4().hex)
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
        """Claim `name`; return False if another process holds it. take_over: take over the claim of a dead owner.

        Raises FileNotFoundError if the folder of all claims is gone: the work is done. Raises PermissionError if only
        another user can remove a dead owner's claim: waiting for it would never end.
        """
        if not self._make(name) and not (take_over and self._is_stale(name) and self._bury(name) and self._make(name)):
            return False
        self._held.add(name)
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
            self._thread.start()
        return True

    def release(self, name: str) -> None:
        """Release a claim, unless it was taken over."""
        self._held.discard(name)
        if self._is_mine(name):
            with contextlib.suppress(OSError):
                (self.folder / name).unlink()

    @contextlib.contextmanager
    def holding(self, name: str, take_over: bool = False) -> Iterator[bool]:
        """Hold a claim for the duration of a `with` block; the value is False if it was not acquired."""
        got = self.acquire(name, take_over)
        try:
            yield got
        finally:
            if got:
                self.release(name)

    def describe_owner(self, name: str) -> str:
        """Return `host (process 123)` for the process that holds a claim, "" if unknown."""
        owner = _parse(self._read(name))
        return f"{owner.host} (process {owner.pid})" if owner else ""

    def _is_mine(self, name: str) -> bool:
        owner = _parse(self._read(name))
        return owner is not None and owner.token == self._owner.token

    def _make(self, name: str) -> bool:
        try:
            files.create(self.folder / name, self._owner.model_dump_json())
        except FileExistsError:
            return False
        except OSError:  # a full disk would leave an empty claim without an owner
            (self.folder / name).unlink(missing_ok=True)
            raise
        return True

    def _is_stale(self, name: str) -> bool:
        now, raw = time.monotonic(), self._read(name)
        before, since = self._seen.get(name, (None, now))
        if raw != before:
            self._seen[name], since = (raw, now), now
        owner = _parse(raw)
        return (owner is not None and owner.is_dead()) or now - since > self.stale

    def _bury(self, name: str) -> bool:
        """Remove a dead owner's claim. Raises PermissionError if only another user can do so."""
        path = self.folder / name
        try:
            path.unlink()
        except FileNotFoundError:
            return True
        except OSError as error:
            owner = owner_name(path)
            if error.errno not in NOT_PERMITTED or not owner:
                return False
            text = f"left by {owner}, who has to remove it; or use a cache folder that you own"
            raise PermissionError(errno.EPERM, text, str(path)) from None
        return True

    def _beat_on(self) -> None:
        while not self._stop.wait(self.beat):
            self._owner.beat += 1
            for name in list(self._held):
                if self._is_mine(name):
                    self._write(name)

    def _write(self, name: str) -> None:
        """Rewrite a claim. A reader that sees it half-written notices a change, which is all it needs."""
        try:
            with os.fdopen(files.open_file(self.folder / name, os.O_WRONLY), "wb") as file:
                file.write(self._owner.model_dump_json().encode())
        except OSError:  # the claim was taken over, or the work is done and the folder is gone
            pass

    def _read(self, name: str) -> bytes:
        try:
            return files.read_bytes(self.folder / name)
        except OSError:
            return b""


def _parse(raw: bytes) -> Owner | None:
    try:
        return Owner.model_validate_json(raw)
    except ValueError:
        return None
