"""Random studies, and how often the report's verdicts and intervals on them are correct.

`make science` prints a table over many studies; tests/science draws few.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ablatrix.orchestrator.report.comparison import compare
from ablatrix.orchestrator.report.statistics import ALPHA
from tests.support.measured_noise import ALGOPERF, MEASURED

CELLS, EFFECT, SEED_SPREAD = 7, 4.0, 0.5  # EFFECT and SEED_SPREAD in standard deviations of a run

Noise = Callable[[np.random.Generator, int], np.ndarray]  # noise of a study, (CELLS, seeds), with variance about 1


def _scaled(cell: int, factor: float) -> Noise:
    def draw(rng: np.random.Generator, seeds: int) -> np.ndarray:
        noise = rng.normal(size=(CELLS, seeds))
        noise[cell] *= factor
        return noise

    return draw


def _collapses(rng: np.random.Generator, seeds: int) -> np.ndarray:
    shape = (CELLS, seeds)
    return rng.normal(size=shape) + np.where(rng.random(shape) < 0.05, rng.exponential(25, shape), 0.0)


def _measured(rng: np.random.Generator, seeds: int) -> np.ndarray:
    return rng.choice(np.array(MEASURED) / np.std(MEASURED), (CELLS, seeds))


def _algoperf(rng: np.random.Generator, seeds: int) -> np.ndarray:
    workload = list(ALGOPERF.values())[rng.integers(len(ALGOPERF))]
    return rng.choice(np.array(workload) / 100, (CELLS, seeds))


NOISES: dict[str, Noise] = {
    "equal": lambda rng, seeds: rng.normal(size=(CELLS, seeds)),
    "one cell x 3": _scaled(2, 3.0),
    "baseline x .3": _scaled(0, 0.3),
    "baseline x 3": _scaled(0, 3.0),
    "t of 3 df": lambda rng, seeds: rng.standard_t(3, (CELLS, seeds)) / np.sqrt(3),
    "5% collapses": _collapses,
    "measured": _measured,
    "algoperf": _algoperf,
}


@dataclass
class Rates:
    """Shares of studies. false_verdicts: one in any cell without an effect; power: the one effect of 4 SD is found.

    coverage: share of pointwise intervals that are correct; joint: of studies with all simultaneous intervals correct.
    """

    false_verdicts: float
    joint: float
    coverage: float
    power: float


def simulate(noise: str, seeds: int, studies: int, rng: int = 1) -> Rates:
    """Return the rates over random studies of CELLS cells, the second of which has an effect."""
    random = np.random.default_rng([rng, seeds, studies])
    names = [f"c{i}" for i in range(CELLS)]
    truth = np.array([0.0, -EFFECT, *[0.0] * (CELLS - 2)])
    counts = np.zeros(4)
    for _ in range(studies):
        runs = NOISES[noise](random, seeds) + SEED_SPREAD * random.normal(size=seeds) + truth[:, None]
        effects = compare({n: dict(enumerate(row.tolist())) for n, row in zip(names, runs, strict=True)}, "c0").effects
        found = [effects[name] for name in names[1:]]
        decided = [e.p_joint is not None and e.p_joint <= ALPHA for e in found]
        bounds = np.array([[e.low, e.high, e.joint_low, e.joint_high] for e in found], dtype=float).T
        pointwise = (bounds[0] <= truth[1:]) & (truth[1:] <= bounds[1])
        simultaneous = (bounds[2] <= truth[1:]) & (truth[1:] <= bounds[3])
        counts += [any(decided[1:]), simultaneous.all(), pointwise.mean(), decided[0]]
    return Rates(*(counts / studies).tolist())


def main(studies: int) -> None:
    """Print a table of all kinds of noise, for 2, 3, 5 and 8 seeds."""
    print(f"{CELLS} cells, {studies} studies each; an effect of {EFFECT:g} SD in one cell")
    print(f"{'noise':16}{'seeds':>6}{'false verdicts':>16}{'all covered':>13}{'covered':>9}{'power':>7}")
    for noise in NOISES:
        for seeds in (2, 3, 5, 8):
            r = simulate(noise, seeds, studies)
            print(
                f"{noise:16}{seeds:6}{r.false_verdicts:16.3f}{r.joint:13.3f}{r.coverage:9.3f}{r.power:7.2f}", flush=True
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
