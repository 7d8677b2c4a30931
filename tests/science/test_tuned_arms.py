"""Coverage and bias of effects at each arm's best rate, in simulated tuned studies; `make science` draws more."""

from __future__ import annotations

import math

import pytest

from tests.support.simulated_tuning import simulate

pytestmark = pytest.mark.slow
STUDIES = 150


@pytest.mark.parametrize(
    ("points", "curvature", "steeper"), [(3, 2.0, 0.0), (3, 5.0, 0.0), (5, 0.5, 0.0), (5, 2.0, 0.5)]
)
def test_coverage_and_bias(points: int, curvature: float, steeper: float) -> None:
    found = simulate(points, curvature, STUDIES, steeper)
    room = 3.1 * math.sqrt(0.05 * 0.95 / STUDIES / 2)  # four intervals a study, which share the baseline
    assert 0.935 - room <= found.coverage <= 0.965 + room
    assert found.bias < 0.1 + 0.05


def test_comparing_at_the_baselines_rate_errs_where_optima_differ() -> None:
    found = simulate(5, 2.0, STUDIES)
    assert found.equal > 1
    assert found.bias < 0.2
