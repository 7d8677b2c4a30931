"""How far a study has come through its planned looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.looks import Looks


@dataclass(frozen=True)
class Progress:
    """Looks that have ended, and what became of the cells.

    ended: how many; stopped: cell -> number of the look (from 1) after which it stopped; going_on: cells that the next
    look is about, besides the baseline.
    """

    looks: Looks
    ended: int = 0
    stopped: Mapping[str, int] = field(default_factory=dict)
    going_on: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """True if no cell goes on."""
        return self.ended > 0 and not self.going_on

    @property
    def spent(self) -> float:
        """Error rate of the looks that have ended."""
        return sum(self.looks.alpha[: self.ended])
