"""Text that the models of a study generated, as samples.txt in the run folders has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report.content import Block, Folded, Samples

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.analysis import CellResult
    from ablatrix.orchestrator.report.collect import RunRecord

HEADER = re.compile(r"^=== iter (\d+)\n", re.MULTILINE)
MOST_CELLS, MOST_LETTERS = 24, 1500


def last_sample(content: bytes) -> str:
    """Return the last sample in a samples.txt with the step that it was drawn at, '' if there is none."""
    text = content.decode("utf-8", "replace")
    found = list(HEADER.finditer(text))
    if not found:
        return ""
    sample = text[found[-1].end() :].strip("\n")
    cut = sample[:MOST_LETTERS] + ("\N{HORIZONTAL ELLIPSIS}" if len(sample) > MOST_LETTERS else "")
    return f"after step {found[-1][1]}:\n{cut}"


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
