"""Error rates, coverage and power of the verdicts in simulated studies. `make science` draws more of them."""

from __future__ import annotations

import math

import pytest

from tests.support import simulated_scales
from tests.support.simulated_looks import ADAPTIVE, simulate_looks
from tests.support.simulated_studies import simulate

pytestmark = pytest.mark.slow
STUDIES = 250


def at_most(rate: float) -> float:
    """Return the share that a rate exceeds with probability 0.001."""
    return rate + 3.1 * math.sqrt(rate * (1 - rate) / STUDIES)


@pytest.mark.parametrize(
    "noise", ["equal", "one cell x 3", "baseline x .3", "t of 3 df", "5% collapses", "measured", "algoperf"]
)
def test_false_verdicts_and_coverage(noise: str) -> None:
    found = simulate(noise, seeds=5, studies=STUDIES)
    assert found.false_verdicts <= at_most(0.06)
    assert 1 - found.joint <= at_most(0.06)
    assert found.coverage >= 0.935 - 0.015
    assert found.power >= 0.95 or noise == "5% collapses"


@pytest.mark.parametrize("noise", ["equal", "measured", "algoperf"])
def test_three_seeds_find_an_effect_of_four_standard_deviations(noise: str) -> None:
    found = simulate(noise, seeds=3, studies=STUDIES)
    assert found.power >= 0.9 - 3.1 * math.sqrt(0.9 * 0.1 / STUDIES)
    assert found.false_verdicts <= at_most(0.06)
    assert 0.935 - 0.015 <= found.coverage <= 0.965 + 0.015


@pytest.mark.parametrize("noise", ["equal", "measured"])
@pytest.mark.parametrize("name", ["3/5/8, six effects", "3/5/8/12, margin 2.5, three"])
def test_planned_looks_keep_the_error_rate_and_the_power_with_fewer_runs(noise: str, name: str) -> None:
    looks, truth, margin = ADAPTIVE[name]
    studies = 60
    found = simulate_looks(noise, looks, truth, studies, margin)
    assert found.false_verdicts <= 0.05 + 3.1 * math.sqrt(0.05 * 0.95 / studies)
    assert found.power >= 0.95 * found.fixed_power - 3.1 * math.sqrt(0.05 * 0.95 / studies)
    assert found.runs <= 0.63
    assert found.null_decided >= 0.9


@pytest.mark.parametrize("truth", simulated_scales.TRUTHS)
def test_bands_over_compute_cover_a_size_that_was_held_back(truth: str) -> None:
    found = simulated_scales.simulate(truth, sizes=5, seeds=3, studies=4 * STUDIES)
    assert found.covered >= 0.9
    if truth == "constant":
        assert found.sloped <= 0.05 + 3.1 * math.sqrt(0.05 * 0.95 / (4 * STUDIES)) + 0.02
