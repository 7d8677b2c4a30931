"""What other hosts write into a shared folder: their clocks may be off, and here it may be seen late. Standard library.

Ages are differences of times that the file server has set, where a file can be made beside them: then no host's clock
matters. How late a file may be seen is a question of the file system: NFS keeps what it knows of a folder for up to a
minute, and a file system of this machine alone shows everything at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from ablatrix.trainer.rundir.files import create, touch

SECONDS = 60.0  # acdirmax of NFS: the longest that a client takes a folder to be as it last was
VARIABLE = "ABLATRIX_VISIBLE_SECONDS"
LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "aufs", "jfs", "bcachefs"}


def delay(folder: Path) -> float:
    """Seconds within which this machine sees a file that another one has made in `folder`; 0 where all is at hand."""
    told = os.environ.get(VARIABLE, "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(told))
    return 0.0 if file_system(folder) in {*LOCAL, ""} else SECONDS


def file_system(folder: Path, table: str = "/proc/self/mountinfo") -> str:
    """The type of the file system that a folder is on (`nfs4`, `xfs`), '' where nothing tells."""
    try:
        where = os.path.realpath(folder)
        lines = Path(table).read_bytes().decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    best, found = -1, ""
    for line in lines:
        mount, _, source = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount.split()[4])
        inside = point == "/" or where == point or where.startswith(point + "/")
        if inside and len(point) >= best:  # of two on one point the later one is on top
            best, found = len(point), source.split()[0]
    return found


def age(path: Path, folder: Path) -> float:
    """Seconds since `path` was last changed, by the file server's clock if a file may be made in `folder`.

    By this machine's clock where that is not possible. Raises OSError where there is no `path`.
    """
    return now(folder) - path.lstat().st_mtime


def now(folder: Path) -> float:
    """The time (Unix seconds) of the machine that keeps `folder`; ours where no file can be made there."""
    probe = folder / f".now.{os.urandom(8).hex()}"
    try:
        create(probe, b"")
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def waited(mark: Path, since: Path, seconds: float) -> bool:
    """Has it been noticed `seconds` ago, by whoever looked first, and nothing been written to `since` after that?

    mark: the file that the first one makes; its time is when. Where it cannot be made, the age of `since` decides.
    """
    if not seconds:
        return True
    changed = since.stat().st_mtime if since.exists() else 0.0
    try:
        if not mark.exists() or mark.stat().st_mtime < changed or age(mark, mark.parent) < 0:
            touch(mark)
        return age(mark, mark.parent) >= seconds
    except OSError:
        return time.time() - changed >= seconds + SECONDS
