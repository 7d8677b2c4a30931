"""Attempt ownership (fencing): a node presumed dead may still be training. Torch-free.

Each process that trains a run claims the next number in `<run>/.attempts`. The newest attempt owns the run; an older
one notices this before its next write, and stops. Events call this number `start`; their `attempt` counts submits.
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
    """The folder of this attempt no longer exists: nothing can be written, and no other process owns the run."""


class SupersededError(RunError):
    """A newer attempt owns the run: this one must exit without writing anything else."""

    exit_code = EXIT_SUPERSEDED


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run, counted from 1."""

    run_dir: Path
    number: int
    inode: int  # the claim's inode: numbers start at 1 again if the run folder was moved away and recreated

    @classmethod
    def take(cls, run_dir: Path) -> Attempt:
        """Begin the next attempt, which supersedes all earlier ones. Raises OSError."""
        # a retry skips a number whose mkdir reported an error but succeeded
        number = retry(run_dir, lambda: claims.take_next(run_dir / FOLDER))
        return cls(run_dir, number, (run_dir / FOLDER / str(number)).stat().st_ino)

    def still_mine(self) -> bool:
        """True if there is no newer attempt and the run folder is still the one in which this attempt began."""
        return newest(self.run_dir) == self.number and self._mark() == self.inode

    def _mark(self) -> int | None:
        """Return the inode of this attempt's claim, None if it does not exist."""
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
                f"{self.run_dir} no longer exists (removed, moved, purged, or its file system is not mounted); this "
                "trainer stops and writes nothing more; start the same command again once it is back"
            )
        raise SupersededError(
            f"{self.run_dir}: another trainer has taken over this run (attempt {other}, this is attempt "
            f"{self.number}); this one stops and writes nothing more"
        )


def newest(run_dir: Path) -> int:
    """Return the number of the newest attempt, 0 if there is none. Raises OSError."""
    return claims.newest(run_dir / FOLDER)
