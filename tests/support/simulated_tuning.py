"""Random tuned studies, with optima that differ between the arms, and how accurate their effects are.

`make science` prints a table over many studies; tests/science draws few.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from ablatrix.orchestrator.report.comparison import compare
from ablatrix.orchestrator.report.optimum import find_optimum
from ablatrix.orchestrator.study.tuning import Tuning

BASE = 2e-3  # the baseline's best learning rate, averaged over studies
TUNING_SEEDS, SEEDS = 2, 3
# Losses in standard deviations of a run; log2 of each arm's best learning rate relative to the baseline's
EFFECTS = np.array([0.0, -4.0, 0.0, 2.0, 0.0])
SHIFTS = np.array([0.0, 0.5, -0.5, 1.0, -1.0])
GRIDS = {3: (1e-3, 2e-3, 4e-3), 5: (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)}


@dataclass
class Accuracy:
    """Accuracy of effects. coverage: of pointwise 95% intervals at each arm's best rate, from the confirmation runs.

    bias: largest bias of any arm's effect due to the choice of rates; equal: mean absolute error if arms are compared
    at the baseline's best rate. Both in SDs of a run.
    """

    coverage: float
    bias: float
    equal: float


def simulate(points: int, curvature: float, studies: int, steeper: float = 0.0) -> Accuracy:
    """Return the accuracy over random studies of five arms.

    curvature: added loss at half or twice the best rate; steeper: how much faster it rises above the best rate than
    below, as a share of curvature per doubling (the parabola is then wrong).
    """
    random = np.random.default_rng([points, studies, round(100 * curvature), round(100 * steeper)])
    tune = Tuning("lr", GRIDS[points], tuple(range(1001, 1001 + TUNING_SEEDS)))
    found = [_study(random, tune, curvature, steeper) for _ in range(studies)]
    covered, errors, equal = (np.array(part) for part in zip(*found, strict=True))
    return Accuracy(float(covered.mean()), float(np.abs(errors.mean(axis=0)).max()), float(np.abs(equal).mean()))


def _study(
    random: np.random.Generator, tune: Tuning, curvature: float, steeper: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (arms - 1,) arrays: whether the interval covers, the error at the arm's best rate, at the baseline's."""
    spread = 0.5 if len(tune.grid) > 3 else 0.0  # common to all optima, in doublings
    optima = np.log2(BASE) + SHIFTS * (1.0 if len(tune.grid) > 3 else 0.5) + spread * random.uniform(-1, 1)

    def loss(arm: int, rate: float) -> float:
        x = float(np.log2(rate) - optima[arm])
        return float(EFFECTS[arm]) + curvature * x**2 * (1 + steeper * max(x, 0.0))

    best = []
    for arm in range(len(EFFECTS)):
        runs = {v: [loss(arm, v) + random.normal() for _ in tune.seeds] for v in tune.grid}
        optimum = find_optimum(runs, tune.candidates)
        assert optimum is not None
        best.append(optimum.value)
    common = 0.5 * random.normal(size=SEEDS)

    def confirm(rates: list[float]) -> dict[str, dict[int, float]]:
        return {
            str(arm): {s: loss(arm, rate) + common[s] + random.normal() for s in range(SEEDS)}
            for arm, rate in enumerate(rates)
        }

    own = compare(confirm(best), "0").effects
    truth = EFFECTS[1:] - EFFECTS[0]
    names = [str(arm) for arm in range(1, len(EFFECTS))]
    low, high = np.array([[own[n].low, own[n].high] for n in names], dtype=float).T
    chosen = np.array([loss(arm, rate) - loss(0, best[0]) for arm, rate in enumerate(best)])[1:]
    shared = np.array([loss(arm, best[0]) - loss(0, best[0]) for arm in range(len(EFFECTS))])[1:]
    return (low <= truth) & (truth <= high), chosen - truth, shared - truth


def main(studies: int) -> None:
    """Print a table over grids, seeds and curvatures."""
    seeds = f"{TUNING_SEEDS} tuning and {SEEDS} other seeds"
    print(f"tuned arms: {len(EFFECTS)} arms, {seeds}, {studies} studies each; in SD of a run")
    print(f"{'grid':>5}{'curvature':>11}{'steeper':>9}{'covered':>9}{'bias':>7}{'error at equal rate':>21}")
    for points in GRIDS:
        for curvature, steeper in ((0.5, 0.0), (2.0, 0.0), (5.0, 0.0), (2.0, 0.5)):
            a = simulate(points, curvature, studies, steeper)
            print(f"{points:5}{curvature:11g}{steeper:9g}{a.coverage:9.3f}{a.bias:7.2f}{a.equal:21.2f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
