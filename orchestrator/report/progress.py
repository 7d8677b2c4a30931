"""How far a study has come through its planned looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.looks import Looks


@dataclass(frozen=True)
class Progress:
    """Which planned looks have ended, and which cells have stopped or continue.

    ended: number of looks that have ended; stopped: cell -> number of the look (from 1) after which it stopped; futile:
    those that stopped for futility; going_on: cells that the next look includes besides the baseline.
    """

    looks: Looks
    ended: int = 0
    stopped: Mapping[str, int] = field(default_factory=dict)
    futile: tuple[str, ...] = ()
    going_on: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """True if no cell continues."""
        return self.ended > 0 and not self.going_on

    def describe(self, cell: str) -> str:
        """Return the state of a cell: `stopped at look 1 of 3`, `goes on to look 2 of 3`, '' before any look."""
        if cell in self.stopped:
            why = " for futility" if cell in self.futile else ""
            return f"stopped{why} at look {self.stopped[cell]} of {len(self.looks)}"
        return f"goes on to look {self.ended + 1} of {len(self.looks)}" if cell in self.going_on else ""

    @property
    def spent(self) -> float:
        """Error rate of the looks that have ended."""
        return sum(self.looks.alpha[: self.ended])
