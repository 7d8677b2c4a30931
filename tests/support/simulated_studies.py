"""Studies drawn at random, and how often the report's verdicts and intervals on them are right.

`make science` prints a table of many; tests/science draws few.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ablatrix.orchestrator.report.comparison import compare
from ablatrix.orchestrator.report.decisions import Verdict, decide
from ablatrix.orchestrator.report.statistics import ALPHA
from ablatrix.orchestrator.study.looks import AdaptiveSeeds, Looks
from ablatrix.orchestrator.study.metric import NLL

CELLS, EFFECT, SEED_SPREAD = 7, 4.0, 0.5  # the last two in standard deviations of a run

# Final validation losses of 30 optimizer recipes on one model and data set (optimizer track of modded-nanogpt, 124 M
# parameters, 0.7 B tokens), each minus the mean of its recipe, times sqrt(n / (n - 1)); in 0.00001 nats
MEASURED = (
    -309,
    -240,
    -236,
    -226,
    -221,
    -221,
    -214,
    -213,
    -211,
    -206,
    -205,
    -204,
    -203,
    -203,
    -201,
    -188,
    -188,
    -181,
    -176,
    -176,
    -172,
    -171,
    -170,
    -162,
    -158,
    -158,
    -156,
    -155,
    -154,
    -154,
    -153,
    -152,
    -151,
    -147,
    -146,
    -145,
    -145,
    -142,
    -138,
    -137,
    -135,
    -133,
    -133,
    -131,
    -130,
    -130,
    -125,
    -123,
    -123,
    -123,
    -120,
    -119,
    -113,
    -112,
    -110,
    -110,
    -108,
    -105,
    -104,
    -103,
    -102,
    -102,
    -102,
    -101,
    -99,
    -98,
    -98,
    -93,
    -91,
    -91,
    -88,
    -84,
    -84,
    -79,
    -77,
    -76,
    -75,
    -74,
    -71,
    -69,
    -68,
    -68,
    -65,
    -65,
    -65,
    -63,
    -61,
    -60,
    -59,
    -58,
    -56,
    -56,
    -56,
    -55,
    -55,
    -55,
    -54,
    -53,
    -52,
    -52,
    -52,
    -52,
    -50,
    -49,
    -49,
    -47,
    -46,
    -46,
    -45,
    -45,
    -45,
    -45,
    -44,
    -43,
    -43,
    -42,
    -42,
    -41,
    -41,
    -41,
    -40,
    -40,
    -40,
    -38,
    -36,
    -33,
    -32,
    -32,
    -32,
    -31,
    -31,
    -31,
    -30,
    -29,
    -28,
    -28,
    -26,
    -26,
    -26,
    -24,
    -23,
    -23,
    -23,
    -22,
    -22,
    -21,
    -21,
    -21,
    -20,
    -19,
    -18,
    -17,
    -15,
    -14,
    -11,
    -11,
    -11,
    -8,
    -7,
    -6,
    -5,
    -5,
    -3,
    -3,
    -3,
    -2,
    -2,
    -1,
    2,
    2,
    4,
    4,
    5,
    5,
    5,
    6,
    6,
    6,
    7,
    8,
    8,
    8,
    9,
    9,
    10,
    12,
    13,
    13,
    14,
    16,
    16,
    17,
    18,
    19,
    20,
    20,
    20,
    21,
    22,
    27,
    27,
    28,
    29,
    29,
    29,
    33,
    35,
    36,
    36,
    38,
    39,
    39,
    41,
    41,
    41,
    43,
    44,
    44,
    45,
    45,
    46,
    50,
    50,
    50,
    54,
    54,
    56,
    59,
    60,
    62,
    63,
    64,
    65,
    66,
    66,
    67,
    68,
    69,
    69,
    70,
    70,
    72,
    72,
    73,
    74,
    74,
    75,
    76,
    78,
    78,
    79,
    79,
    81,
    83,
    83,
    83,
    83,
    84,
    85,
    85,
    85,
    85,
    86,
    87,
    87,
    89,
    90,
    90,
    92,
    92,
    94,
    95,
    96,
    97,
    99,
    101,
    101,
    102,
    102,
    102,
    103,
    104,
    104,
    105,
    105,
    106,
    109,
    109,
    110,
    112,
    113,
    114,
    115,
    117,
    118,
    120,
    120,
    123,
    128,
    129,
    130,
    134,
    134,
    134,
    135,
    137,
    139,
    141,
    144,
    145,
    150,
    151,
    152,
    167,
    172,
    177,
    180,
    180,
    192,
    193,
    196,
    203,
    213,
    218,
    228,
    235,
    236,
    236,
    237,
    250,
    256,
    270,
    274,
    339,
)

Noise = Callable[[np.random.Generator, int], np.ndarray]  # of a study, (CELLS, seeds), of variance about 1


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


NOISES: dict[str, Noise] = {
    "equal": lambda rng, seeds: rng.normal(size=(CELLS, seeds)),
    "one cell x 3": _scaled(2, 3.0),
    "baseline x .3": _scaled(0, 0.3),
    "baseline x 3": _scaled(0, 3.0),
    "t of 3 df": lambda rng, seeds: rng.standard_t(3, (CELLS, seeds)) / np.sqrt(3),
    "5% collapses": _collapses,
    "measured": _measured,
}


@dataclass
class Rates:
    """Shares of studies: false_verdicts, in any cell without an effect; power, of the one effect of 4 SD.

    coverage: of pointwise intervals; joint: of studies whose simultaneous intervals are all right.
    """

    false_verdicts: float
    joint: float
    coverage: float
    power: float


def simulate(noise: str, seeds: int, studies: int, rng: int = 1) -> Rates:
    """Return the rates over studies of CELLS cells, of which the second has an effect."""
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


@dataclass
class Adaptive:
    """Planned looks against the seeds of the last look for all cells, in the same studies.

    false_verdicts, power (mean over the cells with an effect): of the looks; fixed_power: of all seeds at once; runs:
    share of the fixed study's; null_decided: share of the cells without an effect that end as within the margin.
    """

    false_verdicts: float
    power: float
    fixed_power: float
    runs: float
    null_decided: float


def simulate_looks(
    noise: str, looks: Looks, truth: Sequence[float], studies: int, margin: float | None = None, rng: int = 1
) -> Adaptive:
    """Return the rates over studies; truth: effect of each cell but the baseline, in standard deviations of a run."""
    random = np.random.default_rng([rng, looks.seeds[-1], studies])
    names = [f"c{i}" for i in range(CELLS)]
    found = []
    for _ in range(studies):
        seeds = looks.seeds[-1]
        table = NOISES[noise](random, seeds) + SEED_SPREAD * random.normal(size=seeds)
        table += np.array([0.0, *truth])[:, None]
        runs = {name: dict(enumerate(row.tolist())) for name, row in zip(names, table, strict=True)}
        found.append(_adaptive(runs, looks, dict(zip(names[1:], truth, strict=True)), margin))
    return Adaptive(*np.mean(found, axis=0).tolist())


def _adaptive(
    runs: dict[str, dict[int, float]], looks: Looks, truth: dict[str, float], margin: float | None
) -> list[float]:
    """Return the fields of `Adaptive` for one study, decided as the report decides it."""
    stopped: dict[str, tuple[Verdict, int]] = {}
    for seeds, alpha in zip(looks.seeds, looks.alpha, strict=True):
        taken = {
            name: {s: v for s, v in row.items() if s < stopped.get(name, ("", seeds))[1]} for name, row in runs.items()
        }
        found = compare(taken, "c0", alpha=alpha)
        for name in truth.keys() - stopped.keys():
            verdict = decide(found.effects[name], NLL, margin, found.resolution)
            if verdict is not Verdict.INCONCLUSIVE or seeds == looks.seeds[-1]:
                stopped[name] = verdict, seeds
        if truth.keys() == stopped.keys():
            break
    fixed = compare(runs, "c0").effects
    right = {name: Verdict.HELPS if effect < 0 else Verdict.HURTS for name, effect in truth.items() if effect}
    null = [name for name, effect in truth.items() if not effect]
    used = sum(seeds for _, seeds in stopped.values()) + max(seeds for _, seeds in stopped.values())
    return [
        any(stopped[name][0].decided for name in null),
        float(np.mean([stopped[name][0] is verdict for name, verdict in right.items()])),
        float(np.mean([(fixed[name].p_joint or 0) <= ALPHA for name in right])),
        used / (len(runs) * looks.seeds[-1]),
        float(np.mean([stopped[name][0] is Verdict.NO_EFFECT for name in null])) if null else 1.0,
    ]


THREE_LOOKS, FOUR_LOOKS = AdaptiveSeeds(start=3, up_to=8).resolved(), AdaptiveSeeds(start=3, up_to=12).resolved()
ONE, THREE = (-4.0, *[0.0] * 5), (-4.0, 4.0, -2.5, *[0.0] * 3)
ALL = (-4.0, 4.0, -2.5, 4.0, -4.0, 2.5)
ADAPTIVE = {  # looks, effects and margin in standard deviations of a run
    "3/5/8, one effect": (THREE_LOOKS, ONE, None),
    "3/5/8, three effects": (THREE_LOOKS, THREE, None),
    "3/5/8, six effects": (THREE_LOOKS, ALL, None),
    "3/5/8/12, margin 2.5, one": (FOUR_LOOKS, ONE, 2.5),
    "3/5/8/12, margin 2.5, three": (FOUR_LOOKS, THREE, 2.5),
    "3/5/8/12, margin 1.5, three": (FOUR_LOOKS, THREE, 1.5),
}


def print_looks(studies: int) -> None:
    """Print a table of planned looks against all seeds at once, for simulated and for measured noise."""
    print(f"planned looks: {CELLS} cells, {studies} studies each; effects of 2.5 and 4 SD")
    print(f"{'noise':10}{'looks':30}{'false verdicts':>15}{'power':>7}{'fixed':>7}{'runs':>6}{'null decided':>14}")
    for noise in ("equal", "measured"):
        for name, (looks, truth, margin) in ADAPTIVE.items():
            r = simulate_looks(noise, looks, truth, studies, margin)
            print(
                f"{noise:10}{name:30}{r.false_verdicts:15.3f}{r.power:7.3f}{r.fixed_power:7.3f}{r.runs:6.0%}"
                f"{r.null_decided:14.2f}",
                flush=True,
            )


def main(studies: int) -> None:
    """Print a table of all noises, for 2, 3, 5 and 8 seeds, and one of planned looks."""
    print_looks(studies // 4)
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
