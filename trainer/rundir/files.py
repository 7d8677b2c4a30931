"""Open, create, replace and read files safely on shared and failing file systems.

Opening: in a folder that others can write to (scratch, a group's cache), a predictable name may be taken by a symbolic
or hard link to one of the user's files, or by a FIFO that blocks forever. Links are not followed, and anything but a
plain file or folder is refused with an OSError whose `strerror` says what to do. Parent folders may be links.

Writing: no matter which call fails or when, a reader finds the old file or the new one. Transient errors (a file server
that restarts, a signal) are retried; a full disk is reported immediately.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, BinaryIO, TypeVar

logger = logging.getLogger(__name__)


T = TypeVar("T")
StrPath = str | os.PathLike[str]  # with thousands of files, a Path of each takes as long as writing it

TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.EINTR, errno.EAGAIN})
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # EFBIG: the file exceeds the size limit
NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})  # file systems that cannot fsync a directory
PAUSES: tuple[float, ...] = (0.1, 0.5, 2.0, 7.0, 20.0)  # seconds before each retry: enough for a file server to restart
BUFFER = 1 << 20  # bytes: a file server handles a few large writes faster than many small ones

LINKED = "a symbolic link, which is never written through; remove it"
SHARED = "a hard link, so another file would change too; replace it with a copy"
ODD = "not a plain file; remove it"
NO_FOLDER = "in the way of a folder; remove it"
PLAIN, PRIVATE = 0o666, 0o600  # modes before the umask; PRIVATE is for what may contain a secret


def open_file(path: StrPath, flags: int, mode: int = PLAIN) -> int:
    """Open a file like `os.open`. Raises OSError unless it is a regular file with a single hard link."""
    # O_NONBLOCK: do not wait for the other end of a FIFO. Truncate only once this is known to be a plain file
    safe = (flags & ~os.O_TRUNC) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, safe, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, LINKED, str(path)) from None
        if error.errno == errno.ENXIO:  # a FIFO without a reader
            raise OSError(errno.ENXIO, ODD, str(path)) from None
        raise
    if flags & os.O_EXCL:  # a new file
        return descriptor
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
    """Open a plain file for appending, creating it if missing. Raises OSError like `open_file`."""
    return os.fdopen(open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def create(path: StrPath, content: bytes | str, mode: int = PLAIN) -> None:
    """Write a new file. Raises FileExistsError if the name is taken, OSError if it cannot be written."""
    with _closing(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)) as descriptor:
        _write_all(descriptor, content.encode() if isinstance(content, str) else content)


def touch(path: Path) -> None:
    """Create an empty file, or set the time of an existing one to now. Raises OSError like `open_file`."""
    descriptor = open_file(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.utime(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: StrPath, parents: bool = False) -> bool:
    """Create a folder unless it exists; return True if it is new. Raises OSError if the name is a link or not a folder.

    parents: also create missing parent folders; existing ones may be links.
    """
    try:
        if create_folder(path):
            return True
    except FileNotFoundError:
        if not parents:
            raise
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return make_folder(path)
    require_folder(path)
    return False


def create_folder(path: StrPath) -> bool:
    """Create a folder; return False if the name is taken. Raises OSError."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    return True


def require_folder(path: StrPath) -> None:
    """Raise OSError unless the path is a folder, and not a link to one."""
    kind = os.lstat(path).st_mode
    if stat.S_ISLNK(kind):
        raise OSError(errno.ELOOP, LINKED, str(path))
    if not stat.S_ISDIR(kind):
        raise OSError(errno.ENOTDIR, NO_FOLDER, str(path))


def remove(path: Path) -> None:
    """Remove a file, or a folder with its content; what cannot be removed stays.

    `shutil.rmtree` alone would open a FIFO of this name and block.
    """
    import shutil

    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def open_for_reading(path: StrPath, buffering: int = -1) -> BinaryIO:
    """Open a plain file for reading, following links. Raises OSError for anything else: a pipe would block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):  # check before `open`, whose error would name the descriptor instead of the path
        os.close(descriptor)
        raise OSError(errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "rb", buffering)


def read_bytes(path: StrPath) -> bytes:
    """Return a file's content. Raises OSError like `open_for_reading`."""
    with open_for_reading(path, buffering=0) as file:
        return file.read()


def read_bytes_strict(path: StrPath) -> bytes:
    """Return a file's content, b'' only if the file does not exist.

    Raises OSError if the file system fails for longer than `retry` waits: the content is then unknown, not empty.
    """
    try:
        return retry(path, lambda: read_bytes(path))
    except OSError as error:
        if error.errno in TRANSIENT:
            raise
        return b""


def read_text_strict(path: StrPath) -> str:
    """Return the text of a file that is to be rewritten, '' only if it does not exist. Raises OSError."""
    try:
        return retry(path, lambda: read_bytes(path)).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def list_folder(path: StrPath) -> list[str]:
    """Return the names in a folder, [] if it does not exist. Raises OSError.

    Makes an NFS client ask the server; looking up a single name may not.
    """
    try:
        return retry(path, lambda: os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def retry(path: StrPath, action: Callable[[], T]) -> T:
    """Return the result of `action()`, called again with growing pauses while it fails with a TRANSIENT error.

    path: path to name in warnings and in the error. Raises the first OSError that is not transient, or the last one.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            return action()
        except OSError as error:
            if error.filename is None:  # calls on open files do not set it
                error.filename = str(path)
            pause = next(pauses, None) if error.errno in TRANSIENT else None
            if pause is None:
                raise
            logger.warning(f"{path}: {error.strerror}; trying again in {pause:g} s")
        time.sleep(pause)


def replace(
    path: StrPath,
    write: Callable[[IO[bytes]], object] | bytes,
    durable: bool = True,
    guard: Callable[[], None] = lambda: None,
    mode: int = PLAIN,
) -> None:
    """Replace `path` atomically with what `write(file)` writes: after a power cut, the old or the new file is there.

    write: called once per try; or the content itself. durable=False skips the fsyncs, for files that can be
    regenerated. guard: called just before the rename; an exception from it aborts the replacement. mode: the file's
    mode before the umask. If `path` is a link, the link is replaced, not its target. Raises OSError if the file system
    fails for longer than `retry` waits; the temporary file is then removed.
    """
    folder, slash, name = os.fspath(path).rpartition("/")

    def once() -> None:
        temporary = f"{folder}{slash}.{name}.{socket.gethostname()}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
        try:
            _fill(temporary, write, durable, mode)
            guard()
            _rename(temporary, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError) and error.filename == temporary:
                error.filename = str(path)  # the path that the user knows
            raise
        if durable:
            sync_folder(Path(path).parent)

    # A failed fsync drops the data: everything must be written again, repeating the fsync is not enough
    retry(path, once)


def atomic_write(
    path: StrPath,
    content: bytes | str,
    durable: bool = True,
    guard: Callable[[], None] = lambda: None,
    mode: int = PLAIN,
) -> None:
    """Replace the content of `path`, like `replace`."""
    replace(path, content.encode() if isinstance(content, str) else content, durable, guard, mode)


def append_line(path: StrPath, line: str, guard: Callable[[], None] = lambda: None) -> None:
    """Append one line in a single write; if a kill has left a partial last line, terminate that line first.

    guard: called between opening and writing; an exception from it prevents the write. If the file is replaced after
    that, the line goes to the old file. Raises OSError like `retry` and `open_file`; the file then has the whole line
    or nothing of it.
    """
    data = (line + "\n").encode()
    tries = 0

    def once() -> None:
        nonlocal tries
        tries += 1
        with _closing(open_file(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)) as descriptor:
            size = os.fstat(descriptor).st_size
            # close() may have reported an error even though the line was written
            if tries > 1 and os.pread(descriptor, len(data), max(0, size - len(data))) == data:
                return
            guard()
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            _append(descriptor, b"\n" + data if torn else data, size)

    retry(path, once)


def sync_file(path: Path) -> None:
    """Make the content of a file survive a power cut. Raises OSError without retrying: a second fsync would lie."""
    with _closing(open_file(path, os.O_RDONLY)) as descriptor:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    with _closing(os.open(folder, os.O_RDONLY)) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in NO_FOLDER_SYNC:
                raise


class _Raw(io.RawIOBase):
    """An open file that records its first error, because torch.save, written in C++, loses exceptions raised in it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.error: BaseException | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        if self.error is None:
            try:
                _write_all(self.descriptor, data)
            except BaseException as error:  # noqa: BLE001  (raised by `_fill`)
                self.error = error
        return len(data)


def _fill(path: StrPath, write: Callable[[IO[bytes]], object] | bytes, durable: bool, mode: int) -> None:
    with _closing(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)) as descriptor:
        if isinstance(write, bytes):
            _write_all(descriptor, write)
        else:
            _call_with_file(write, descriptor)
        if durable:
            os.fsync(descriptor)


def _call_with_file(write: Callable[[IO[bytes]], object], descriptor: int) -> None:
    raw = _Raw(descriptor)
    file = io.BufferedWriter(raw, BUFFER)  # type: ignore[type-var]
    try:
        write(file)
    finally:
        file.detach()  # flushes
        if raw.error is not None:  # the cause, instead of what the writer turned it into
            raise raw.error from None


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    written = os.write(descriptor, data)
    left = memoryview(data).cast("B")[written:]
    while left:
        left = left[os.write(descriptor, left) :]


def _rename(temporary: str, path: StrPath) -> None:
    try:
        os.replace(temporary, path)
    except FileNotFoundError as error:
        # If the answer to a rename is lost, the server repeats it and finds the source gone; writing again resolves it
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path)) from error


def _append(descriptor: int, data: bytes, size: int) -> None:
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_size == size + written:  # else another process has appended after the torn part
                os.ftruncate(descriptor, size)
        raise


class _closing:  # noqa: N801  (contextlib.contextmanager would take as long as the writing)
    """Close a descriptor exactly once; an error from close() is raised unless an exception is already propagating."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __enter__(self) -> int:
        return self.descriptor

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            os.close(self.descriptor)
        except OSError:
            if kind is None:
                raise
