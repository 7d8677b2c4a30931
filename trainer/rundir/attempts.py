"""Attempt ownership (fencing): a node presumed dead may still be training. Torch-free.

Each process that trains a run claims the next number in `<run>/.attempts`. The newest attempt owns the run; an older
one finds that out before it writes, and stops. Events call this number `start`; their `attempt` is a submit's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ablatrix.trainer.rundir import claims
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.files import retry
from ablatrix.trainer.rundir.run_files import EXIT_SUPERSEDED

FOLDER = ".attempts"


class GoneError(RunError):
    """The folder of this attempt no longer exists: nothing more can be written, and no other process has the run."""


class SupersededError(RunError):
    """A newer attempt owns the run: this one must exit without writing anything more."""

    exit_code = EXIT_SUPERSEDED


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run, counted from 1."""

    run_dir: Path
    number: int
    inode: int  # of its claim: a run folder that was moved away and made again counts from 1 again

    @classmethod
    def take(cls, run_dir: Path) -> Attempt:
        """Begin the next attempt, which supersedes all before it. Raises OSError."""
        # a retry skips a number whose mkdir succeeded although it reported an error
        number = retry(run_dir, lambda: claims.take_next(run_dir / FOLDER))
        return cls(run_dir, number, (run_dir / FOLDER / str(number)).stat().st_ino)

    def still_mine(self) -> bool:
        """True if no attempt is newer and the run's folder is still the one that this attempt was made in."""
        return newest(self.run_dir) == self.number and self._mark() == self.inode

    def _mark(self) -> int | None:
        """Return the inode of this attempt's claim, None where it does not exist."""
        try:
            return (self.run_dir / FOLDER / str(self.number)).stat().st_ino
        except FileNotFoundError:
            return None

    def require(self) -> None:
        """Raise SupersededError or GoneError unless `still_mine`. Takes microseconds: call it before every write."""
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


def newest(run_dir: Path) -> int:
    """Return the number of the newest attempt, 0 before the first. Raises OSError."""
    return claims.newest(run_dir / FOLDER)
