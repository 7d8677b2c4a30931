"""Whose run is it: a node that was given up may go on with its trainer beside the second attempt. Free of torch.

Attempt n of a run is whoever made the folder `<run>/.attempts/<n>`: mkdir has one winner on every file system. The
newest attempt owns the run; an older one finds that out before it writes, and stops.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ablatrix.trainer.rundir.atomic import retried
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.run_files import EXIT_SUPERSEDED
from ablatrix.trainer.rundir.safe_open import make_folder

FOLDER = ".attempts"


class GoneError(RunError):
    """The folder of this attempt is not there any more: it cannot write anything more, and nobody else has the run."""


class SupersededError(RunError):
    """A newer attempt has the run: this one must end without writing anything more."""

    exit_code = EXIT_SUPERSEDED


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run, counted from 1."""

    run_dir: Path
    number: int
    inode: int  # of its mark: a folder that was put aside and made anew counts from 1 again

    @classmethod
    def take(cls, run_dir: Path) -> Attempt:
        """Begin the next attempt; all before it are superseded from here on. Raises OSError."""
        # a number whose mkdir was done although it failed is left out when it is tried again
        number = retried(run_dir, lambda again: _next(run_dir))
        return cls(run_dir, number, (run_dir / FOLDER / str(number)).stat().st_ino)

    def still_mine(self) -> bool:
        """Is there no newer attempt, and is the run's folder still the one that this attempt was made in?"""
        return newest(self.run_dir) == self.number and self._mark() == self.inode

    def _mark(self) -> int | None:
        """The inode of this attempt's mark, None where there is none."""
        try:
            return (self.run_dir / FOLDER / str(self.number)).stat().st_ino
        except FileNotFoundError:
            return None

    def require(self) -> None:
        """Raises SupersededError, or GoneError, unless `still_mine`. Some microseconds: call it before every write."""
        if self.still_mine():
            return
        other = newest(self.run_dir)
        if other < self.number or (self._mark() is None and other == self.number):
            raise GoneError(
                f"{self.run_dir}: is gone (removed, moved, purged, or its file system is not mounted any more); this "
                "trainer stops and writes nothing more; start the same command again when it is back"
            )
        raise SupersededError(
            f"{self.run_dir}: another trainer has this run (attempt {other}, this is attempt "
            f"{self.number}); this one stops and writes nothing more"
        )


def _next(run_dir: Path) -> int:
    folder = run_dir / FOLDER
    make_folder(folder, parents=True)
    number = newest(run_dir) + 1
    while True:
        try:
            (folder / str(number)).mkdir()
            return number
        except FileExistsError:
            number += 1


def newest(run_dir: Path) -> int:
    """Number of the newest attempt, 0 before the first. Raises OSError.

    Lists the folder: opening it makes an NFS client ask the server, which a mere look for the next number would not.
    """
    folder = run_dir / FOLDER
    try:
        names = retried(folder, lambda again: os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return max((int(name) for name in names if name.isascii() and name.isdigit()), default=0)
