"""What alternative designs of the same features would cost and show: runs, standard error of an effect, hours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablatrix.orchestrator.study import screening

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MOST_CELLS = 1024  # in a design that is worth a row


@dataclass(frozen=True)
class Choice:
    """A design with the study's number of seeds. error: standard error of an effect, in units of a run's noise.

    equal_seeds: seeds per cell if the design has as many runs as the study; equal_error: standard error with that many
    seeds, None below 2. hours: of all its runs, None if unknown.
    """

    design: str
    cells: int
    runs: int
    error: float
    equal_seeds: int
    equal_error: float | None
    hours: float | None
    shows: str


def compare_designs(levels: Sequence[int], seeds: int, runs: int, hours_per_run: float | None) -> list[Choice]:
    """Return the designs that the features allow. levels: of each feature, without off; runs: of the study."""
    found = []
    for design, cells, per_level, shows in _designs(levels):
        # an effect is the difference of two means over this many cells each
        error = math.sqrt(2 / (per_level * seeds))
        equal = runs // cells
        found.append(
            Choice(
                design,
                cells,
                cells * seeds,
                error,
                equal,
                math.sqrt(2 / (per_level * equal)) if equal > 1 else None,
                None if hours_per_run is None else cells * seeds * hours_per_run,
                shows,
            )
        )
    return found


def _designs(levels: Sequence[int]) -> Iterator[tuple[str, int, float, str]]:
    """Yield (name, number of cells, cells with a feature at one level, what it shows) for each design."""
    count = len(levels)
    yield "baseline, one_at_a_time", 1 + sum(levels), 1, "each feature alone"
    if count > 2:
        yield "leave_one_out", 1 + count, 1, "each feature with all others on"
    full = math.prod(level + 1 for level in levels)
    if full <= MOST_CELLS:
        yield "factorial", full, full / (max(levels) + 1), "main effects, interactions, exact Shapley values"
    if max(levels) > 1:
        return
    cells = full
    meanings = {
        5: "main effects, all pairs, Shapley values",
        4: "main effects, sums of aliased pairs",
        3: "main effects if no pair interacts",
    }
    for resolution, shows in meanings.items():
        if count <= screening.MOST[resolution]:
            size = len(screening.fractional(count, resolution).cells)
            if size < cells:
                yield f"{{fractional: {resolution}}}", size, size / 2, shows
            cells = min(cells, size)
    if 5 <= count < max(screening.PLACKETT_BURMAN):
        size = len(screening.plackett_burman(count).cells)
        yield "plackett_burman", size, size / 2, "main effects, blind to interactions"
