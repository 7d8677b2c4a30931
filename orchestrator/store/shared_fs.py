"""Clock skew and attribute-cache delay on shared file systems (NFS). Standard library only.

Ages are differences between two times set by the file server, so no host's clock matters.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path

from ablatrix.trainer.rundir.files import create, touch

SECONDS = 60.0  # NFS's acdirmax: the longest time for which a client caches a folder's content
VARIABLE = "ABLATRIX_VISIBLE_SECONDS"
LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "aufs", "jfs", "bcachefs"}


def visibility_delay(folder: Path) -> float:
    """Return the seconds after which this host sees a file created by another in `folder`; 0 on a local file system."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(os.environ.get(VARIABLE, "")))
    return 0.0 if file_system(folder) in {*LOCAL, ""} else SECONDS


def file_system(folder: Path, table: str = "/proc/self/mountinfo") -> str:
    """Return the type of the file system that a folder is on (`nfs4`, `xfs`), '' if unknown."""
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
        if inside and len(point) >= best:  # of two mounts on one mount point, the later is on top
            best, found = len(point), source.split()[0]
    return found


def nearest_existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def age(path: Path, folder: Path) -> float:
    """Return the seconds since `path` was changed, by the clock of the server of `folder`. Raises OSError."""
    return now(folder) - path.lstat().st_mtime


def now(folder: Path) -> float:
    """Return the Unix time of the machine that stores `folder`; this machine's if no file can be created there."""
    probe = folder / f".now.{os.urandom(8).hex()}"
    try:
        create(probe, b"")
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def has_settled(mark: Path, watched: Path, seconds: float) -> bool:
    """True once `seconds` have passed since any process first asked, with no change to `watched` in between.

    mark: file whose mtime records that first question. If it cannot be created, the age of `watched` decides.
    """
    if not seconds:
        return True
    changed = watched.stat().st_mtime if watched.exists() else 0.0
    try:
        if not mark.exists() or mark.stat().st_mtime < changed or age(mark, mark.parent) < 0:
            touch(mark)
        return age(mark, mark.parent) >= seconds
    except OSError:
        return time.time() - changed >= seconds + SECONDS
