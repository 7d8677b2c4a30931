"""Dividing work between processes on any hosts that share a folder, by rename: flock does nothing on many clusters.

A claim is a folder that holds its owner's name. It is made elsewhere and renamed into place, which fails where a
folder that is not empty stands already: a claim without an owner's name is never seen.

A claim says who is at work, so that others take something else. It is never what makes a result right: results appear
by an atomic rename and are the same whoever makes them, so that a claim taken over too early costs time only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir.processes import born, machine
from ablatrix.trainer.rundir.files import read_bytes
from ablatrix.trainer.rundir.files import create, open_file, owner_name, remove, require_folder

BEAT_SECONDS = 5.0  # between two signs of life
STALE_SECONDS = 60.0  # without one, by the clock of the process that waits: the hosts' clocks may differ
OWNER = "owner.json"
NOT_OURS = (errno.EPERM, errno.EACCES)


class Claims:
    """The claims that this process holds in one folder, with their heartbeat. Use as a context manager."""

    def __init__(self, folder: Path, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> None:
        self.folder, self.beat, self.stale = folder, beat, stale
        self._token = uuid.uuid4().hex
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

        Raises FileNotFoundError where the folder of all claims is gone: the work is done. Raises PermissionError where
        another user's claim was left there that only that user can take away: waiting for it would never end.
        """
        if not self._make(name) and not (take_over and self._is_stale(name) and self._bury(name) and self._make(name)):
            return False
        self._held.add(name)
        if self._thread is None:
            self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)
            self._thread.start()
        return True

    def release(self, name: str) -> None:
        """Give a claim back."""
        self._held.discard(name)
        if self._is_mine(name):
            self._discard(name)

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

    def _is_mine(self, name: str) -> bool:
        return _parse(self._read(name)).get("token") == self._token

    def _make(self, name: str) -> bool:
        if (self.folder / name / OWNER).exists():
            return False
        made = self._hidden(name)
        made.mkdir()
        try:
            create(made / OWNER, self._owner(0))
            made.rename(self.folder / name)
        except OSError as error:
            remove(made)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            if error.errno == errno.ENOTDIR:
                require_folder(self.folder / name)  # says what it is
            if error.errno in NOT_OURS:  # an empty folder of another user's, where names cannot be taken away
                return False
            raise
        return True

    def _hidden(self, name: str) -> Path:
        return self.folder / f".{name}.{uuid.uuid4().hex}"

    def _is_stale(self, name: str) -> bool:
        now, raw = time.monotonic(), self._read(name)
        before, since = self._seen.get(name, (None, now))
        if raw != before:
            self._seen[name], since = (raw, now), now
        return _died(_parse(raw)) or now - since > self.stale

    def _bury(self, name: str) -> bool:
        """Take a dead owner's claim away. Raises PermissionError where that is not ours to do."""
        try:
            return self._take_away(name)
        except OSError as error:
            if error.errno not in NOT_OURS or not (whose := owner_name(self.folder / name)):
                return False
            told = f"was left by {whose}, who has to remove it; or use a cache folder of your own"
            raise PermissionError(errno.EPERM, told, str(self.folder / name)) from None

    def _discard(self, name: str) -> bool:
        try:
            return self._take_away(name)
        except OSError:
            return False

    def _take_away(self, name: str) -> bool:
        """Of several that try, the rename lets one succeed. Raises OSError for the others."""
        grave = self._hidden(name)
        (self.folder / name).rename(grave)
        remove(grave)
        return True

    def _beat_on(self) -> None:
        count = 0
        while not self._stop.wait(self.beat):
            count += 1
            for name in list(self._held):
                if self._is_mine(name):
                    self._write(name, count)

    def _write(self, name: str, count: int) -> None:
        path = self.folder / name / OWNER
        with contextlib.suppress(OSError):  # taken over, or the work is done and its folder gone
            with os.fdopen(open_file(path.with_suffix(".new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
                file.write(self._owner(count))
            path.with_suffix(".new").replace(path)

    def _owner(self, beat: int) -> str:
        """This process, and how often its heart has beaten."""
        pid = os.getpid()
        who = {"host": socket.gethostname(), "machine": machine(), "pid": pid, "born": born(pid)}
        return json.dumps({**who, "token": self._token, "beat": beat})

    def _read(self, name: str) -> bytes:
        try:
            return read_bytes(self.folder / name / OWNER)
        except OSError:
            return b""


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _died(owner: dict[str, Any]) -> bool:
    """Known to be dead: a process of this very machine that is there no more. Of others nothing is known."""
    here = machine()
    pid = owner.get("pid")
    if not here or owner.get("machine") != here or not isinstance(pid, int):
        return False
    return owner.get("born") != born(pid)
