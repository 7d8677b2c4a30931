"""Opening and making files where another user may have put something first. Free of torch.

In a folder that others may write (scratch, a group's cache), a name that can be guessed may be taken: by a symbolic or
hard link to a file of the user's, so that we would write there; by a FIFO, which would have us wait for ever. What is
made or written in a study, a run's folder or the cache is opened here: nothing is followed, and what is no plain file
or folder of its own is refused with an OSError whose `strerror` says what to do. Folders above may be links.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

LINKED = "is a symbolic link, and nothing is written through one; remove it"
SHARED = "has another name somewhere (a hard link), which would be written too; put a copy in its place"
ODD = "is not a plain file; remove it"
NO_FOLDER = "is in the way of a folder; remove it"
PLAIN, PRIVATE = 0o666, 0o600  # modes, less the umask: what is shared follows it, what may hold a secret never does


def open_file(path: Path, flags: int, mode: int = PLAIN) -> int:
    """`os.open` of a plain file that has one name only. Raises OSError: another kind of file, or what `open` meets."""
    # O_NONBLOCK: not to wait for whoever would open the other end of a FIFO. Emptied once it is known what it is
    safe = (flags & ~os.O_TRUNC) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, safe, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, LINKED, str(path)) from None
        if error.errno == errno.ENXIO:  # a FIFO that nobody reads
            raise OSError(errno.ENXIO, ODD, str(path)) from None
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.ENXIO, ODD, str(path))
        if found.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EMLINK, SHARED, str(path))
        if flags & os.O_TRUNC:
            os.ftruncate(descriptor, 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_to_append(path: Path) -> BinaryIO:
    """A plain file to append to, made where it is not there. Raises OSError as `open_file` does."""
    return os.fdopen(open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def create(path: Path, content: bytes | str, mode: int = PLAIN) -> None:
    """Write a file that is not there yet. Raises OSError, FileExistsError for whatever has this name."""
    with os.fdopen(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def touch(path: Path) -> None:
    """Make an empty file, or have one be changed now. Raises OSError as `open_file` does."""
    descriptor = open_file(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.utime(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path, parents: bool = False) -> None:
    """Make a folder, or find it there. Raises OSError where it is a link to one, or no folder.

    parents: those above are made too, and may be links.
    """
    try:
        os.mkdir(path)
    except FileNotFoundError:
        if not parents:
            raise
        path.parent.mkdir(parents=True, exist_ok=True)
        make_folder(path)
    except FileExistsError:
        require_folder(path)


def make_private_folder(path: Path) -> None:
    """A folder that nobody else may look into or put anything into: for what is loaded as code, or continued.

    Raises OSError as `make_folder` does, PermissionError where another user has made it.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        require_folder(path)
        if not is_own(path):
            raise PermissionError(errno.EPERM, f"belongs to {owner_name(path)}; remove it", str(path)) from None
        os.chmod(path, 0o700)


def require_folder(path: Path) -> None:
    """Raises OSError unless there is a folder of this name, itself and not a link to one."""
    kind = os.lstat(path).st_mode
    if stat.S_ISLNK(kind):
        raise OSError(errno.ELOOP, LINKED, str(path))
    if not stat.S_ISDIR(kind):
        raise OSError(errno.ENOTDIR, NO_FOLDER, str(path))


def remove(path: Path) -> None:
    """Take away a folder with all that is in it, or whatever has its name; what cannot be removed stays.

    `shutil.rmtree` opens what it is given, and would wait for a FIFO for ever.
    """
    import shutil

    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


# ---- whose it is


def is_own(path: Path) -> bool:
    """Has this user made it, or nobody yet?

    Some file systems give every file an owner of their own choice (a squashed NFS export, a container's mount): there a
    file made now tells who we are.
    """
    try:
        owner = os.lstat(path).st_uid
    except FileNotFoundError:
        return True
    return owner == os.geteuid() or owner == _uid_in(path.parent)


def owner_name(path: Path) -> str:
    """Whose it is, for people: a user's name, or a number; "" where it is not there."""
    import pwd

    try:
        uid = os.lstat(path).st_uid
    except OSError:
        return ""
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"


def personal(path: Path) -> Path:
    """The path, or where another user has it already, `<path>-<our uid>`."""
    return path if is_own(path) else path.with_name(f"{path.name}-{os.geteuid()}")


def _uid_in(folder: Path) -> int | None:
    probe = folder / f".{os.urandom(8).hex()}.tmp"
    try:
        create(probe, b"", PRIVATE)
        return os.lstat(probe).st_uid
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)
