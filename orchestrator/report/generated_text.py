"""Text that the models of a study generated, as samples.txt in the run folders has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report.content import Block, Folded, Samples

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.cell_result import CellResult
    from ablatrix.orchestrator.report.collect import RunRecord

MOST_CELLS = 24


def side_by_side(cells: Sequence[CellResult]) -> list[Block]:
    """Return the last sample of each cell, all of one seed where it can be, folded."""
    entries = [(run.cell, run.seed, run.sample) for cell in cells[:MOST_CELLS] if (run := _first(cell))]
    if not entries:
        return []
    shown = [(f"{cell}, seed {seed}", sample) for cell, seed, sample in entries]
    return [Folded("Generated text, the same prompt in every cell", [Samples(shown)])]


def _first(cell: CellResult) -> RunRecord | None:
    """Return the run of the lowest seed that has a sample."""
    return min((run for run in cell.runs if run.sample), key=lambda run: run.seed, default=None)
