"""Numbered claims: the folder `<folder>/<n>` belongs to the process that created it.

mkdir has exactly one winner on every file system, including NFS and Lustre, where file locks often do nothing. Two
things are claimed this way: the right to queue a run (`.queue`, orchestrator/store/submit_attempts.py) and the right to
write to its folder (`.attempts`, attempts.py).
"""

from __future__ import annotations

from pathlib import Path

from ablatrix.trainer.rundir.files import list_folder, make_folder


def newest(folder: Path) -> int:
    """Return the highest number claimed, 0 if there is none. Raises OSError."""
    return max((int(name) for name in list_folder(folder) if name.isascii() and name.isdigit()), default=0)


def take(folder: Path, number: int | str) -> bool:
    """Claim a number or a name; return False if another process has it. Raises OSError if it cannot be written."""
    make_folder(folder)
    try:
        (folder / str(number)).mkdir()
    except FileExistsError:
        return False
    return True


def take_next(folder: Path) -> int:
    """Claim and return the lowest number above all others, creating missing parent folders. Raises OSError."""
    make_folder(folder, parents=True)
    number = newest(folder) + 1
    while not take(folder, number):
        number += 1
    return number
