"""Studies that run in stages: which runs are due, wait for results of others, or are not needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

ENDED = ("done", "failed", "lost", "cancelled")  # no submit continues such a run unasked
NOT_NEEDED = "not needed"  # how the reason of a run begins that will never be queued


def is_needless(reason: str) -> bool:
    """True if the reason why a run is held back says that it will never be queued."""
    return reason.startswith(NOT_NEEDED)


@dataclass(frozen=True)
class Stages:
    """The runs beyond a study's first stage: id -> why it is not queued now, '' if it is due."""

    later: Mapping[str, str] = field(default_factory=dict)
    lines: Sequence[str] = ()  # for `status`: how far the study has come
    decided: Sequence[str] = ()  # those of the lines that say what results have decided
    at_most: int | None = None  # of the runs that may follow, how many will at most; None: all

    @property
    def held(self) -> dict[str, str]:
        """Runs that are not to be queued now, and why."""
        return {name: why for name, why in self.later.items() if why}

    @property
    def due(self) -> set[str]:
        """Runs of a later stage whose time has come."""
        return {name for name, why in self.later.items() if not why}

    @property
    def following(self) -> int:
        """The number of runs that follow at most."""
        found = len(self.due) + len(self.waiting)
        return found if self.at_most is None else min(found, self.at_most)

    @property
    def waiting(self) -> dict[str, str]:
        """Runs that may be due when others have ended."""
        return {name: why for name, why in self.held.items() if not is_needless(why)}


def merge(stages: Iterable[Stages]) -> Stages:
    """Return the stages that several rules find together: a run is due if it is for all of them."""
    later: dict[str, str] = {}
    lines: list[str] = []
    decided: list[str] = []
    limits: list[int] = []
    for stage in stages:
        limits += [] if stage.at_most is None else [stage.at_most]
        lines += stage.lines
        decided += stage.decided
        for name, why in stage.later.items():
            before = later.get(name, "")
            later[name] = why if is_needless(why) or not before else before
    return Stages(later, lines, decided, min(limits, default=None))
