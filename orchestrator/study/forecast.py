"""Forecast, before anything runs, which effects a study can show and how many seeds its goal needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.study import power
from ablatrix.orchestrator.study.designs import AA, count_main_effects
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ablatrix.orchestrator.study.experiment import Experiment, Goal
    from ablatrix.orchestrator.study.looks import Looks
    from ablatrix.orchestrator.study.metric import Measure
    from ablatrix.orchestrator.study.run_config import Config

FEWEST_SEEDS = 3  # with which several cells can be compared
USUAL_POWER = 0.8
# Standard deviation of the final held-out NLL between seeds: 7 cells x 3 seeds of experiments/quickstart.yaml, and the
# modded-nanogpt optimizer track (0.7 B tokens, 30 recipes, 334 runs, residual of recipe + seed: 0.0011 to 0.0013)
MEASURED = ((0.5e6, 0.017), (124e6, 0.0012))


@dataclass(frozen=True)
class Noise:
    """Residual standard deviation of cell + seed, and its source."""

    sigma: float
    source: str


@dataclass(frozen=True)
class Forecast:
    """What a design can show. smallest: effect shown with `power`; needed: seeds for the goal, None if over 200.

    cells: number at each of `sizes` sizes, within which they are compared. main_effects: how many the report
    tests, 0 if it compares cells with the baseline.
    """

    cells: int
    seeds: int
    noise: Noise | None
    measure: Measure
    power: float
    smallest: float | None
    goal: Goal | None
    needed: int | None
    hours_per_seed: float | None  # for one run of every cell
    hours_unit: str
    sizes: int = 1
    checks: int = 0  # cells that are not compared with the others (the A/A check)
    main_effects: int = 0
    looks: Looks | None = None

    def lines(self) -> list[str]:
        """Return sentences for the terminal; [] for a single cell, which has nothing to be compared with."""
        if self.cells < 2:
            return []
        unit, design = self.measure.short_unit, f"{self.cells} cells x {count(self.seeds, 'seed')}"
        design += f" at each of {self.sizes} sizes" if self.sizes > 1 else ""
        lines = [self.looks.describe(self.cells)] if self.looks else []
        if self.noise is None:
            lines.append(f"{design}: set `noise:` (standard deviation between seeds) to see which effects they show")
        elif self.smallest is not None:
            kind = "main effects" if self.main_effects else "effects"
            lines.append(
                f"{design} can show {kind} over about {self.smallest:.2g}{unit} with {self.power:.0%} power, "
                f"at a noise of {self.noise.sigma:.2g}{unit} between seeds ({self.noise.source})"
            )
        fewest, of = _fewest(self.main_effects), "main effects" if self.main_effects else "cells"
        if self.seeds < fewest:
            lines.append(f"{design} cannot decide between {of}; take at least {fewest} seeds")
        if self.goal and self.noise:
            wanted = f"goal: an effect of {self.goal.effect:g}{unit} with {self.power:.0%} power needs"
            lines.append(f"{wanted} {self._cost()}")
        return lines

    def _cost(self) -> str:
        if self.needed is None:
            return f"more than {power.MOST_SEEDS} seeds"
        hours = self.hours
        text = f"{count(self.needed, 'seed')}: {count(self.needed * self.every, 'run')}"
        return text + (f", about {hours:.3g} {self.hours_unit}" if hours is not None else "")

    @property
    def every(self) -> int:
        """Number of runs per seed."""
        return (self.cells + self.checks) * self.sizes

    @property
    def hours(self) -> float | None:
        """Hours of the design with the seeds that the goal needs, None if unknown."""
        return self.needed * self.hours_per_seed if self.needed and self.hours_per_seed else None

    def as_record(self) -> dict[str, Any]:
        """Return the forecast for `plan --format json`."""
        goal = self.goal and {
            "effect": self.goal.effect,
            "seeds": self.needed,
            "runs": self.needed and self.needed * self.every,
            "hours": _rounded(self.hours),
        }
        return {
            "cells": self.cells,
            "seeds": self.seeds,
            "looks": self.looks and self.looks.as_record(),
            "unit": self.measure.unit,
            "noise": _rounded(self.noise.sigma) if self.noise else None,
            "noise_source": self.noise and self.noise.source,
            "power": self.power,
            "smallest_effect": _rounded(self.smallest),
            "main_effects": self.main_effects,
            "goal": goal,
            "hours_unit": self.hours_unit,
        }


def _fewest(main_effects: int) -> int:
    """Return the fewest seeds that allow a decision; main effects estimate the noise from many cells."""
    return 2 if main_effects else FEWEST_SEEDS


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def known_noise(experiment: Experiment, config: Config) -> Noise | None:
    """Return the noise given in the file, else a typical value for models of this size; None for any other measure."""
    if experiment.noise is not None:
        return Noise(experiment.noise, "`noise:` of the file")
    parameters = config.parameters
    if not config.measure.is_nll or not parameters:
        return None
    (small, at_small), (large, at_large) = MEASURED
    share = (math.log(parameters) - math.log(small)) / (math.log(large) - math.log(small))
    sigma = at_small * (at_large / at_small) ** min(1.0, max(0.0, share))
    source = f"measured: {at_small:g} at 0.5 M parameters, {at_large:g} at 124 M; set `noise:` to your own"
    return Noise(sigma, source)


def choose_seeds(experiment: Experiment, config: Config, cells: int) -> list[int]:
    """Return the seeds in the file, or as many as its goal needs if there are none.

    They depend only on the file: a study does not grow because of new results elsewhere. config: of the baseline.
    Raises ConfigError.
    """
    goal = experiment.goal
    if not (experiment.seeds_follow_goal and goal):
        return experiment.seed_list
    noise = known_noise(experiment, config)
    if noise is None:
        raise ConfigError(["goal: the noise of this measure is not known; give `noise:`, or `seeds:`"])
    main, cells = count_main_effects(experiment), cells - (AA in experiment.design)
    needed = power.seeds_needed(goal.effect, noise.sigma, cells, goal.power, main) if cells > 1 else 1
    if needed is None:
        most = f"more than {power.MOST_SEEDS} seeds at a noise of {noise.sigma:.2g}"
        raise ConfigError([f"goal: an effect of {goal.effect:g} needs {most}; raise it, or give `seeds:`"])
    return list(range(1, max(needed, _fewest(main) if cells > 1 else 1) + 1))


def forecast(
    experiment: Experiment,
    config: Config,
    *,
    cells: Collection[str],
    seeds: int,
    earlier: Noise | None,
    hours: Mapping[str, float],
    hours_unit: str,
) -> Forecast:
    """Return what runs of these cells with this many seeds can show.

    config: of the baseline at the smallest size; earlier: noise of results with the same baseline; hours: cell -> hours
    of one run.
    """
    sizes = len(experiment.sizes)
    checks = int(AA in experiment.design)
    compared = len(cells) // sizes - checks
    noise = earlier or known_noise(experiment, config)
    goal = experiment.goal
    wanted = goal.power if goal else USUAL_POWER
    main = count_main_effects(experiment)
    looks = experiment.looks
    alpha = looks.alpha[-1] if looks else power.ALPHA
    return Forecast(
        cells=compared,
        seeds=seeds,
        noise=noise,
        measure=config.measure,
        power=wanted,
        smallest=power.smallest_effect(noise.sigma, compared, seeds, wanted, main, alpha=alpha) if noise else None,
        goal=goal,
        needed=power.seeds_needed(goal.effect, noise.sigma, compared, wanted, main) if goal and noise else None,
        hours_per_seed=sum(hours[cell] for cell in cells) if all(cell in hours for cell in cells) else None,
        hours_unit=hours_unit,
        main_effects=main,
        sizes=sizes,
        checks=checks,
        looks=looks,
    )
