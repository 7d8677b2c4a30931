"""Reading curves at a budget, and the cost of reaching a target."""

from __future__ import annotations

import numpy as np
import pytest

from ablatrix.orchestrator.report.budgets import first_reach, interpolate
from ablatrix.orchestrator.report.statistics import Reach

X = np.array([1000.0, 4000.0, 16000.0])


def test_a_power_law_is_read_exactly() -> None:
    y = 5 * X**-0.2
    assert interpolate(X, y, 2500.0) == pytest.approx(5 * 2500**-0.2, rel=1e-12)
    assert first_reach(X, y, 5 * 9000**-0.2) == (pytest.approx(9000.0, rel=1e-9), False)
    shifted = 3 + 3.2 * (1 + X / 50) ** -0.7
    truth = 3 + 3.2 * (1 + 8000 / 50) ** -0.7
    straight = float(np.interp(8000, X, shifted))
    assert abs((interpolate(X, shifted, 8000.0) or 0) - truth) < abs(straight - truth) / 2


def test_values_that_are_not_positive_are_read_linearly() -> None:
    x, y = np.array([0.0, 10.0, 20.0]), np.array([-1.0, 1.0, 0.0])
    assert interpolate(x, y, 5.0) == pytest.approx(0.0)
    assert interpolate(x, y, 20.0) == 0.0
    assert interpolate(x, y, 21.0) is None
    assert interpolate(x, y, -1.0) is None
    assert first_reach(x, -y, -0.5) == (pytest.approx(7.5), False)


def test_a_target_passed_before_the_first_evaluation_is_at_most() -> None:
    y = np.array([5.0, 3.0, 2.0])
    assert first_reach(X, y, 6.0) == (1000.0, True)
    assert first_reach(X, y, 5.0) == (1000.0, False)
    assert first_reach(X, y, 3.0) == (4000.0, False)
    assert first_reach(X, y, 1.9) is None
    wavy = np.array([5.0, 2.5, 4.0])
    found = first_reach(X, wavy, 3.0)
    assert found is not None and 1000 < found[0] < 4000


def test_the_mean_of_a_censored_reach_is_a_lower_bound() -> None:
    assert Reach((50.0,), (100.0,)).mean == 75.0
    assert Reach((50.0,), (100.0,)).censored and not Reach((50.0,)).censored
