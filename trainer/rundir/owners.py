"""The owners of files and folders in places that several users write to."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from ablatrix.trainer.rundir.files import PRIVATE, create, require_folder


def make_private_folder(path: Path) -> None:
    """Create a folder that only this user can read or write, for files that are loaded as code or resumed from.

    Raises OSError like `make_folder`, PermissionError if another user owns it.
    """
    try:
        path.mkdir(0o700)
    except FileExistsError:
        require_folder(path)
        if not is_own(path):
            raise PermissionError(errno.EPERM, f"owned by {owner_name(path)}; remove it", str(path)) from None
        path.chmod(0o700)


def is_own(path: Path) -> bool:
    """True if this user created the file, or if it does not exist.

    Some file systems set the owner of every file (a squashed NFS export, a container's mount): there the owner of a
    new file shows which owner is ours.
    """
    try:
        owner = os.lstat(path).st_uid
    except FileNotFoundError:
        return True
    return owner == os.geteuid() or owner == _owner_of_new_file(path.parent)


def owner_name(path: Path) -> str:
    """Return the name of a file's owner, or `user 1234`; "" if there is no file."""
    import pwd

    try:
        uid = os.lstat(path).st_uid
    except OSError:
        return ""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"


def personal(path: Path) -> Path:
    """Return the path, or `<path>-<uid>` if another user owns it."""
    return path if is_own(path) else path.with_name(f"{path.name}-{os.geteuid()}")


def _owner_of_new_file(folder: Path) -> int | None:
    probe = folder / f".{os.urandom(8).hex()}.tmp"
    try:
        create(probe, b"", PRIVATE)
        return os.lstat(probe).st_uid
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
