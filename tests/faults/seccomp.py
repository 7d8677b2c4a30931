"""System calls of a child process, failed or cut off one by one by the kernel itself (seccomp user notification).

The child installs a filter on itself that hands every call but those about memory, signals and clocks to its parent.
The parent numbers them and lets each one through, answers it with an error, or kills the child before it. Nothing in
the code under test is replaced, and a call that is added to it is found without being named here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

NAMES = {
    0: "read", 1: "write", 2: "open", 3: "close", 4: "stat", 5: "fstat", 6: "lstat", 8: "lseek", 16: "ioctl",
    17: "pread64", 18: "pwrite64", 19: "readv", 20: "writev", 21: "access", 32: "dup", 33: "dup2", 72: "fcntl",
    74: "fsync", 75: "fdatasync", 76: "truncate", 77: "ftruncate", 78: "getdents", 80: "chdir", 82: "rename",
    83: "mkdir", 84: "rmdir", 86: "link", 87: "unlink", 88: "symlink", 89: "readlink", 90: "chmod", 91: "fchmod",
    92: "chown", 217: "getdents64", 257: "openat", 258: "mkdirat", 262: "newfstatat", 263: "unlinkat",
    264: "renameat", 265: "linkat", 268: "fchmodat", 269: "faccessat", 285: "fallocate", 316: "renameat2",
    332: "statx", 437: "openat2",
}  # fmt: skip
CHANGING = frozenset(
    {
        "write",
        "pwrite64",
        "writev",
        "open",
        "openat",
        "openat2",
        "fsync",
        "fdatasync",
        "truncate",
        "ftruncate",
        "rename",
    }
    | {"renameat", "renameat2", "mkdir", "mkdirat", "rmdir", "link", "linkat", "unlink", "unlinkat", "fallocate"}
)
# x86_64 numbers of calls that have nothing to do with files: they are never stopped
PASSED = (
    *(9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 28, 35, 39, 44, 46, 56, 60, 61, 63, 96, 98, 99, 100, 102, 104, 107, 108),
    *(131, 157, 158, 186, 202, 203, 204, 228, 229, 230, 231, 273, 302, 309, 318, 324, 334, 435, 449),
)
MARK = 110  # getppid: tells the parent where the watched part begins and ends
MAKING = os.O_CREAT | os.O_TRUNC
LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Fault:
    """What becomes of call number `at`, counted from 1 among those of the watched part.

    changing: only calls that change files count; reading: only those that read a file whose path ends so.

    how: `once` it fails; `same` it and all later calls of its name do; `all` it and all later ones do; `kill` the
    process is killed before it; `pause` something else happens before it. `number`: the error number.
    """

    how: str = "none"
    at: int = 0
    number: int = errno.EIO
    changing: bool = False
    reading: str = ""


@dataclass
class Outcome:
    """What happened: the exit code (negative: killed by that signal), the calls, and the names of those that failed."""

    code: int
    calls: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def unsupported() -> str:
    """Why this machine cannot do it; '' where it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "needs Linux on x86_64"
    try:
        outcome = watch(lambda: 7, Fault())
    except OSError as error:
        return f"seccomp user notification is not available here: {error.strerror}"
    return "" if outcome.code == 7 else f"seccomp user notification does not work here (exit code {outcome.code})"


def watch(
    action: Callable[[], int],
    fault: Fault,
    prepare: Callable[[], None] = lambda: None,
    meanwhile: Callable[[], object] = lambda: None,
) -> Outcome:
    """Run `prepare` and then, under `fault`, `action` in a forked child. The result is its exit code; 99: it raised.

    meanwhile: what happens here while the child is kept waiting at a `pause`.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            ours.close()
            prepare()
            socket.send_fds(theirs, [b"x"], [_install()])
            os.getppid()
            code = action()
        except BaseException:  # noqa: BLE001  (a forked child reports all, and must not return)
            import traceback

            traceback.print_exc()
        finally:
            os.getppid()
            os._exit(code)
    theirs.close()
    _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    ours.close()
    if not descriptors:
        os.waitpid(child, 0)
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    outcome = Outcome(0)
    try:
        _serve(descriptors[0], child, fault, outcome, meanwhile)
    finally:
        os.close(descriptors[0])
        outcome.code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return outcome


def _install() -> int:
    """Filter this process; the descriptor on which its calls are announced."""
    load, equal, give = 0x20, 0x15, 0x06
    program = [struct.pack("HBBI", load, 0, 0, 0)]
    for number in PASSED:
        program += [struct.pack("HBBI", equal, 0, 1, number), struct.pack("HBBI", give, 0, 0, 0x7FFF0000)]  # ALLOW
    program.append(struct.pack("HBBI", give, 0, 0, 0x7FC00000))  # USER_NOTIF
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("H6xQ", len(program), ctypes.addressof(code)))
    LIBC.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    descriptor = LIBC.syscall(317, 1, 8, header)  # seccomp(SECCOMP_SET_MODE_FILTER, NEW_LISTENER)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(descriptor)


def _serve(listener: int, child: int, fault: Fault, outcome: Outcome, meanwhile: Callable[[], object]) -> None:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    watching, broken = False, ""
    while True:
        ready = poll.poll()
        if not ready[0][1] & select.POLLIN:
            return  # the child is gone
        request = bytearray(80)
        try:
            fcntl.ioctl(listener, 0xC0502100, request)  # SECCOMP_IOCTL_NOTIF_RECV
        except OSError:
            continue
        identity, _, _, number, _, _, first, *others = struct.unpack_from("QIIiIQQQQ", request)
        name = NAMES.get(number, str(number))
        watching ^= number == MARK
        answer = 0
        if watching and number != MARK and not (name == "write" and first <= 2):
            counted = _counts(fault, child, name, first, others)
            if counted:
                outcome.calls.append(name)
            if counted and len(outcome.calls) == fault.at:
                broken = name
                if fault.how == "kill":
                    os.kill(child, signal.SIGKILL)
                    return
                if fault.how == "pause":
                    meanwhile()
            if counted or fault.how == "all":
                answer = _answer(fault, outcome, broken, name)
        flags = 0 if answer else 1  # CONTINUE
        with contextlib.suppress(OSError):
            fcntl.ioctl(listener, 0xC0182101, bytearray(struct.pack("QqiI", identity, 0, -answer, flags)))


def _counts(fault: Fault, child: int, name: str, first: int, others: list[int]) -> bool:
    if fault.reading:
        return name in ("read", "pread64") and str(Path(f"/proc/{child}/fd/{first}").readlink()).endswith(fault.reading)
    if not fault.changing:
        return True
    return name in CHANGING and (name != "openat" or bool(others[1] & MAKING))


def _answer(fault: Fault, outcome: Outcome, broken: str, name: str) -> int:
    """The error number that this call fails with, 0: none."""
    hit = {
        "once": bool(broken) and not outcome.failed,
        "same": name == broken,
        "all": bool(broken),
    }.get(fault.how, False)
    # an interrupted call is made again by Python itself: for ever, if it were interrupted for ever
    if not hit or (fault.number == errno.EINTR and len(outcome.failed) >= 100):
        return 0
    outcome.failed.append(name)
    return fault.number
