"""Studies that run in stages: which runs are due, wait for other runs' results, or are not needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

ENDED = ("done", "failed", "lost", "cancelled")  # no submit continues such a run unless asked to
NOT_NEEDED = "not needed"  # prefix of the reason for a run that will never be queued


def is_needless(reason: str) -> bool:
    """True if the reason for holding a run back means that it will never be queued."""
    return reason.startswith(NOT_NEEDED)


@dataclass(frozen=True)
class Stages:
    """The runs beyond a study's first stage: id -> why it is not queued now, '' if it is due."""

    later: Mapping[str, str] = field(default_factory=dict)
    lines: Sequence[str] = ()  # the study's progress, for `status`
    decided: Sequence[str] = ()  # those of `lines` that say what the results have decided
    at_most: int | None = None  # upper limit on the number of runs that will follow; None: no limit

    @property
    def held(self) -> dict[str, str]:
        """Runs that must not be queued now, and why."""
        return {name: why for name, why in self.later.items() if why}

    @property
    def due(self) -> set[str]:
        """Runs of later stages that may be queued now."""
        return {name for name, why in self.later.items() if not why}

    @property
    def following(self) -> int:
        """The largest number of runs that may follow."""
        found = len(self.due) + len(self.waiting)
        return found if self.at_most is None else min(found, self.at_most)

    @property
    def waiting(self) -> dict[str, str]:
        """Runs that may become due once others have ended."""
        return {name: why for name, why in self.held.items() if not is_needless(why)}


def merge(stages: Iterable[Stages]) -> Stages:
    """Combine the stages found by several rules: a run is due if all of them say so."""
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
