"""Tuned arms: find a setting's best value for every cell, including the baseline, before comparing cells.

Tuning runs train each cell at each value of the grid with the tuning seeds. Confirmation runs train it with the seeds
of the study, which tuning never uses, at the cell's best value and at the baseline's best value. The best values are
known only after the tuning runs, so a study contains confirmation runs for every candidate, few of which are queued.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BeforeValidator

from ablatrix.orchestrator.study import dotted
from ablatrix.orchestrator.study.scale import SEPARATOR
from ablatrix.trainer.rundir.console import count

SEEDS = "seeds"
FIRST_SEED = 1001  # first tuning seed: far from the study's seeds, which may grow
USUAL_SEEDS = 2
FEWEST, MOST = 3, 9  # values of a grid
STEPS_PER_DOUBLING = 4  # density of candidates: rounding to them costs little, even at a steep minimum
EXAMPLE = "{trainer.learning_rate: [1e-3, 2e-3, 4e-3]}"


class Tuned(Protocol):
    """A run, planned or on disk."""

    @property
    def cell(self) -> str: ...

    @property
    def seed(self) -> int: ...


R = TypeVar("R", bound=Tuned)


@dataclass(frozen=True)
class Tuning:
    """What is tuned. grid: ascending; seeds: of the tuning runs."""

    setting: str
    grid: tuple[float, ...]
    seeds: tuple[int, ...]

    @cached_property
    def candidates(self) -> tuple[float, ...]:
        """The values that may be confirmed: the grid, and rounded steps of at most 19% between its values."""
        whole = all(isinstance(value, int) for value in self.grid)
        found: list[float] = [self.grid[0]]
        for low, high in pairwise(self.grid):
            steps = math.ceil(STEPS_PER_DOUBLING * math.log2(high / low) - 1e-9)
            between = [low * (high / low) ** (step / steps) for step in range(1, steps)]
            rounded = [round(value) if whole else float(f"{value:.2g}") for value in between]
            found += [value for value in dict.fromkeys(rounded) if low < value < high] + [high]
        return tuple(found)

    def name(self, cell: str, value: float) -> str:
        """Return the name of a cell at a value: `rope@0.002`."""
        return f"{cell}{SEPARATOR}{value:g}"

    def value_of(self, run: Tuned) -> float:
        """Return the value at which a run is trained."""
        return float(run.cell.rpartition(SEPARATOR)[2])

    def is_tuning(self, run: Tuned) -> bool:
        """True for a tuning run, False for a confirmation run."""
        return run.seed in self.seeds

    def seeds_at(self, value: float, seeds: Sequence[int]) -> list[int]:
        """Return the seeds of a cell at a value. seeds: the study's."""
        return [*(self.seeds if value in self.grid else ()), *seeds]

    def largest(self, runs: Sequence[R]) -> list[R]:
        """Return the largest set of runs that may be trained: the tuning runs, and two values of each cell.

        The baseline, which is the first cell, has only its own best value.
        """
        first, second = self.grid[:2]
        baseline = arm_of(runs[0].cell) if runs else ""
        wanted = {
            run.cell
            for run in runs
            if self.value_of(run) == first or (self.value_of(run) == second and arm_of(run.cell) != baseline)
        }
        return [run for run in runs if self.is_tuning(run) or run.cell in wanted]

    def compared(self, runs: Sequence[R]) -> list[R]:
        """Return the confirmation runs at one value: as many as the verdicts are based on."""
        return [run for run in runs if not self.is_tuning(run) and self.value_of(run) == self.grid[0]]


def arm_of(cell: str) -> str:
    """Return the cell of the design that a cell at a value belongs to."""
    return cell.partition(SEPARATOR)[0]


def parse(value: Any) -> Any:
    """Return the value of `tune:` as a Tuning; None unchanged. Raises ValueError."""
    if value is None or isinstance(value, Tuning):
        return value
    settings = dotted.flatten(value) if isinstance(value, dict) else {}
    seeds = settings.pop(SEEDS, USUAL_SEEDS)
    if len(settings) != 1:
        found = f", got {', '.join(settings)}" if settings else ""
        raise ValueError(f"give one setting with its values, `tune: {EXAMPLE}`{found}")
    ((setting, grid),) = settings.items()
    return Tuning(setting, _parse_grid(setting, grid), _parse_seeds(seeds))


def _parse_grid(setting: str, grid: Any) -> tuple[float, ...]:
    if not isinstance(grid, list) or not all(_is_number(value) for value in grid):
        raise ValueError(f"{setting} needs a list of numbers, `{EXAMPLE}`")
    if any(value <= 0 for value in grid):
        raise ValueError(f"{setting} is tuned in its logarithm, so every value must be above 0")
    if len(set(grid)) < len(grid):
        raise ValueError(f"{setting} has a value twice; give each once")
    if not FEWEST <= len(grid) <= MOST:
        number = count(len(grid), "value")
        raise ValueError(f"{setting} has {number}; a parabola needs {FEWEST} to {MOST}, best a factor of 2 apart")
    if len({f"{value:g}" for value in grid}) < len(grid):
        raise ValueError(f"{setting} has two values that are the same in 6 digits; give them further apart")
    return tuple(sorted(grid))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parse_seeds(seeds: Any) -> tuple[int, ...]:
    if isinstance(seeds, int) and not isinstance(seeds, bool) and 1 <= seeds <= 100:
        return tuple(range(FIRST_SEED, FIRST_SEED + seeds))
    whole = isinstance(seeds, list) and all(isinstance(s, int) and not isinstance(s, bool) and s >= 0 for s in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is the number of runs at each value, such as {USUAL_SEEDS}, or a list of seeds")
    return tuple(seeds)


TuneField = Annotated[
    Tuning | None,
    BeforeValidator(parse, json_schema_input_type=dict[str, int | list[float]] | None),
]
