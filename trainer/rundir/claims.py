"""Numbered claims: the folder `<folder>/<n>` belongs to the process that created it.

mkdir has exactly one winner on every file system, including NFS and Lustre, where file locks often do nothing. Two
things are claimed this way: the right to queue a run (`.queue`, orchestrator/store/submit_attempts.py) and the right to
write to its folder (`.attempts`, attempts.py).
"""

from __future__ import annotations

from ablatrix.trainer.rundir.files import StrPath, create_folder, list_folder, make_folder


def newest(folder: StrPath) -> int:
    """Return the highest number claimed, 0 if there is none. Raises OSError."""
    return max((int(name) for name in list_folder(folder) if name.isascii() and name.isdigit()), default=0)


def take(folder: StrPath, number: int | str) -> bool:
    """Claim a number or a name; return False if another process has it. Raises OSError if it cannot be written."""
    make_folder(folder)
    return create_folder(f"{folder}/{number}")


def take_next(folder: StrPath) -> int:
    """Claim and return the lowest number above all others, creating missing parent folders. Raises OSError."""
    make_folder(folder, parents=True)
    number = newest(folder) + 1
    while not take(folder, number):
        number += 1
    return number
