"""Random studies with a scale axis, and how often the bands over compute cover the size that was held back.

`make science` prints a table over many studies; tests/science draws few.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ablatrix.orchestrator.report.pooled import fit
from ablatrix.orchestrator.report.scaling import Point, fit_line

CELLS, RATIO = 4, 4.0  # cells of a study, ratio of compute between successive sizes
TRUTHS: dict[str, Callable[[float], float]] = {  # ln(C / C_0) -> effect in standard deviations at the smallest size
    "constant": lambda x: -2.0,
    "line": lambda x: -3.0 + 0.5 * x,
    "power law": lambda x: -4.0 * math.exp(-0.2 * x),
}


@dataclass
class Rates:
    """Shares of studies. covered: the 95% prediction interval covers the held-back effect; sloped: b = 0 rejected."""

    covered: float
    sloped: float


def simulate(truth: str, sizes: int, seeds: int, studies: int, rng: int = 1) -> Rates:
    """Return the rates over random studies of several sizes, the largest of which is held back from the fit.

    The noise of a run decreases by a fifth from each size to the next.
    """
    random = np.random.default_rng([rng, sizes, seeds, studies])
    counts = np.zeros(2)
    for _ in range(studies):
        points = [_measure(random, truth, size, seeds) for size in range(sizes)]
        line = fit_line(points[:-1])
        assert line is not None
        seen, last = line.at(points[-1].compute), points[-1].effect
        counts += [seen.seen_low <= last <= seen.seen_high, line.slope_interval[2] <= 0.05]
    return Rates(*(counts / studies).tolist())


def _measure(random: np.random.Generator, truth: str, size: int, seeds: int) -> Point:
    """Return the effect of one cell at a size, from the pooled fit on which the report's comparison is based."""
    x = size * math.log(RATIO)
    noise = 0.8**size * random.normal(size=(CELLS, seeds)) + random.normal(size=seeds)
    noise[1] += TRUTHS[truth](x)
    pool = fit({f"c{i}": dict(enumerate(row.tolist())) for i, row in enumerate(noise)})
    means, units, _ = pool.against("c0")
    return Point(str(size), math.exp(x), float(means[0]), math.sqrt(units[0] * pool.variance), pool.df)


def main(studies: int) -> None:
    """Print a table of all truths, for 3 to 5 sizes and 3 or 5 seeds."""
    print(f"\n{CELLS} cells at several sizes, the largest held back, {studies} studies each")
    print(f"{'effect':16}{'sizes':>6}{'seeds':>6}{'covered':>9}{'slope shown':>13}")
    for truth in TRUTHS:
        for sizes in (4, 5, 6):
            for seeds in (3, 5):
                found = simulate(truth, sizes, seeds, studies)
                print(f"{truth:16}{sizes - 1:6}{seeds:6}{found.covered:9.3f}{found.sloped:13.3f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4000)
