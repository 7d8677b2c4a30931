"""Random studies with planned looks, compared with running all seeds at once: error rates, power and runs.

`make science` prints a table over many studies; tests/science draws few.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ablatrix.orchestrator.report.comparison import compare
from ablatrix.orchestrator.report.decisions import Verdict, decide
from ablatrix.orchestrator.report.looks import conditional_power
from ablatrix.orchestrator.report.statistics import ALPHA
from ablatrix.orchestrator.study.looks import AdaptiveSeeds, Looks
from ablatrix.orchestrator.study.metric import NLL
from tests.support.simulated_studies import CELLS, NOISES, SEED_SPREAD


@dataclass
class Adaptive:
    """Planned looks compared with running all seeds of the last look in all cells, in the same studies.

    false_verdicts, power (mean over the cells with an effect): with looks; fixed_power: with all seeds at once; runs:
    share of the fixed study's runs; null_decided: share of the cells without an effect that end within the margin.
    """

    false_verdicts: float
    power: float
    fixed_power: float
    runs: float
    null_decided: float


def simulate_looks(
    noise: str, looks: Looks, truth: Sequence[float], studies: int, margin: float | None = None, rng: int = 1
) -> Adaptive:
    """Return the rates over random studies. truth: effect of each cell except the baseline, in SDs of a run."""
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
    """Return the fields of `Adaptive` for one study, with decisions made as in the report."""
    stopped: dict[str, tuple[Verdict, int]] = {}
    for look, (seeds, alpha) in enumerate(zip(looks.seeds, looks.alpha, strict=True)):
        taken = {
            name: {s: v for s, v in row.items() if s < stopped.get(name, ("", seeds))[1]} for name, row in runs.items()
        }
        found = compare(taken, "c0", alpha=alpha)
        for name in truth.keys() - stopped.keys():
            effect = found.effects[name]
            verdict = decide(effect, NLL, margin, found.resolution)
            last = seeds == looks.seeds[-1]
            futile = not last and not margin and conditional_power(effect, looks, look, len(truth)) < looks.futility
            if verdict is not Verdict.INCONCLUSIVE or last or futile:
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
ADAPTIVE = {  # (looks, effects, margin), the last two in standard deviations of a run
    "3/5/8, one effect": (THREE_LOOKS, ONE, None),
    "3/5/8, three effects": (THREE_LOOKS, THREE, None),
    "3/5/8, six effects": (THREE_LOOKS, ALL, None),
    "3/5/8/12, margin 2.5, one": (FOUR_LOOKS, ONE, 2.5),
    "3/5/8/12, margin 2.5, three": (FOUR_LOOKS, THREE, 2.5),
    "3/5/8/12, margin 1.5, three": (FOUR_LOOKS, THREE, 1.5),
}


def main(studies: int) -> None:
    """Print a table that compares planned looks with all seeds at once, for simulated and measured noise."""
    print(f"planned looks: {CELLS} cells, {studies} studies each; effects of 2.5 and 4 SD")
    print(f"{'noise':10}{'looks':30}{'false verdicts':>15}{'power':>7}{'fixed':>7}{'runs':>6}{'null decided':>14}")
    for noise in ("equal", "measured"):
        for name, (looks, truth, margin) in ADAPTIVE.items():
            r = simulate_looks(noise, looks, truth, studies, margin)
            decided = f"{r.null_decided:.2f}" if 0.0 in truth else "-"
            print(
                f"{noise:10}{name:30}{r.false_verdicts:15.3f}{r.power:7.3f}{r.fixed_power:7.3f}{r.runs:6.0%}"
                f"{decided:>14}",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
