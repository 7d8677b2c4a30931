"""Writing on file systems that fail now and then: files replaced whole, lines appended whole. Free of torch.

Whatever call fails, at whatever moment, a reader finds the old file or the new one. Errors that pass by themselves
(a file server that restarts, a signal) are waited for; a full disk is not: the caller hears of it at once.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from ablatrix.trainer.rundir.console import warn
from ablatrix.trainer.rundir.safe_open import PLAIN, open_file

T = TypeVar("T")

TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.EINTR, errno.EAGAIN})
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # the last: the largest file allowed
# what file systems say that cannot fsync a directory: nothing can be done about it, and nothing is lost by going on
NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})
PAUSES: tuple[float, ...] = (
    0.1,
    0.5,
    2.0,
    7.0,
    20.0,
)  # seconds before each further try: half a minute, as file servers need to restart
BUFFER = 1 << 20  # bytes: a file server answers a few large writes sooner than many small ones


def retried(path: Path, action: Callable[[bool], T]) -> T:
    """The result of `action(again)`, tried again with growing pauses while it fails in a way that may pass.

    again: it has failed before, perhaps half done. path: named in warnings and in the error. Raises OSError: the first
    that will not pass, or the last.
    """
    pauses = iter(PAUSES)
    again = False
    while True:
        try:
            return action(again)
        except OSError as error:
            if error.filename is None:  # calls on open files do not know it
                error.filename = str(path)
            pause = next(pauses, None) if error.errno in TRANSIENT else None
            if pause is None:
                raise
            warn(f"{path}: {error.strerror}; trying again in {pause:g} s")
        time.sleep(pause)
        again = True


def replace(
    path: Path,
    write: Callable[[IO[bytes]], object],
    durable: bool = True,
    guard: Callable[[], None] = lambda: None,
    mode: int = PLAIN,
) -> None:
    """Replace `path` by what `write(file)` writes: a reader, or a machine after a power cut, has the old or the new.

    write: called once per try. durable=False leaves out the fsyncs, for files that can be made again. guard: called
    last before the new file takes the place of the old one; what it raises ends the attempt. mode: of the file, less
    the umask. A link of this name is replaced, and not what it points to. Raises OSError where the file system fails
    for longer than `retried` waits; the temporary file is then removed.
    """

    def once(again: bool) -> None:
        name = f".{path.name}.{socket.gethostname()}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
        temporary = path.with_name(name)
        try:
            _fill(temporary, write, durable, mode)
            guard()
            _rename(temporary, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, OSError) and error.filename == str(temporary):
                error.filename = str(path)  # the one that the user knows
            raise
        if durable:
            sync_folder(path.parent)

    # A failed fsync has thrown the data away: only writing everything again makes it good, never the fsync alone
    retried(path, once)


def append_line(path: Path, line: str, guard: Callable[[], None] = lambda: None) -> None:
    """Append one line by a single write; a tail torn by a kill is closed first, so that it spoils only itself.

    guard: called between opening and writing; what it raises ends the attempt. If the file is replaced after that,
    the line goes to the file that is no more. Raises OSError as `retried` and `open_file` do; the line is then
    whole in the file, or nothing of it is.
    """
    data = (line + "\n").encode()

    def once(again: bool) -> None:
        with _closing(open_file(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)) as descriptor:
            size = os.fstat(descriptor).st_size
            # close() may have reported an error of a line that is there
            if again and os.pread(descriptor, len(data), max(0, size - len(data))) == data:
                return
            guard()
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            _append(descriptor, b"\n" + data if torn else data, size)

    retried(path, once)


def sync_file(path: Path) -> None:
    """Have what was written to a file survive a power cut. Raises OSError at once: a second fsync would lie."""
    with _closing(open_file(path, os.O_RDONLY)) as descriptor:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut (fsync of the directory)."""
    with _closing(os.open(folder, os.O_RDONLY)) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in NO_FOLDER_SYNC:
                raise


class _Raw(io.RawIOBase):
    """An open file for writers written in C++, which lose or wrap what is raised in them: the first error is kept."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.error: BaseException | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        if self.error is None:
            try:
                left = memoryview(data).cast("B")
                while left:
                    left = left[os.write(self.descriptor, left) :]
            except BaseException as error:
                self.error = error
        return len(data)


def _fill(path: Path, write: Callable[[IO[bytes]], object], durable: bool, mode: int) -> None:
    with _closing(open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)) as descriptor:
        raw = _Raw(descriptor)
        file = io.BufferedWriter(raw, BUFFER)  # type: ignore[type-var]
        try:
            write(file)
        finally:
            file.detach()  # flushes
            if raw.error is not None:  # the cause, instead of what the writer made of it
                raise raw.error from None
        if durable:
            os.fsync(descriptor)


def _rename(temporary: Path, path: Path) -> None:
    try:
        os.replace(temporary, path)
    except FileNotFoundError as error:
        # A file server that repeats a rename whose answer was lost finds the source gone. Writing again settles it.
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path)) from error


def _append(descriptor: int, data: bytes, size: int) -> None:
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError:
        with contextlib.suppress(OSError):
            if os.fstat(descriptor).st_size == size + written:  # else somebody has appended after the torn part
                os.ftruncate(descriptor, size)
        raise


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    """A descriptor, closed exactly once; an error of close() counts unless another one is on its way."""
    try:
        yield descriptor
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        raise
    os.close(descriptor)
