"""The best value of a grid: the parabola over its logarithm, its edges, and what diverged."""

from __future__ import annotations

import math

import pytest

from ablatrix.orchestrator.report.optimum import Optimum, find_optimum
from ablatrix.orchestrator.study.tuning import Tuning

GRID = (1e-3, 2e-3, 4e-3)
CANDIDATES = Tuning("lr", GRID, (1001,)).candidates


def losses(best: float, grid: tuple[float, ...] = GRID, curvature: float = 1.0) -> dict[float, list[float]]:
    return {value: [3 + curvature * math.log2(value / best) ** 2] for value in grid}


def known(found: Optimum | None) -> Optimum:
    assert found is not None
    return found


@pytest.mark.parametrize("best", [1.3e-3, 2e-3, 3.1e-3])
def test_a_parabola_is_found_exactly(best: float) -> None:
    found = known(find_optimum(losses(best), CANDIDATES))
    assert found.fitted == pytest.approx(best)
    assert found.value == min(CANDIDATES, key=lambda value: abs(math.log(value / best)))
    assert found.at_edge is (best != 2e-3)  # the mean at an end of the grid is the best one
    a, b, c = found.parabola
    assert -b / (2 * a) == pytest.approx(math.log(best))
    assert c - b * b / (4 * a) == pytest.approx(3)


@pytest.mark.parametrize(("best", "edge"), [(5e-4, 1e-3), (1e-2, 4e-3)])
def test_an_optimum_beyond_the_grid_is_at_its_edge(best: float, edge: float) -> None:
    found = known(find_optimum(losses(best), CANDIDATES))
    assert found.value == edge
    assert found.at_edge


def test_without_a_minimum_the_best_value_is_taken() -> None:
    found = known(find_optimum({1e-3: [3.0], 2e-3: [3.5], 4e-3: [3.1]}, CANDIDATES))
    assert found.value == 1e-3
    assert found.at_edge


def test_a_blow_up_does_not_move_the_optimum_past_the_next_value() -> None:
    grid = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
    runs = {**losses(2e-3, grid, 0.1), 8e-3: [7.0]}
    found = known(find_optimum(runs, Tuning("lr", grid, (1,)).candidates))
    assert 1e-3 <= found.value <= 4e-3


def test_a_loss_that_is_flat_far_above_the_best_rate_does_not_move_the_optimum() -> None:
    grid = (2e-3, 4e-3, 8e-3, 16e-3)
    measured = (6.460, 6.341, 6.586, 6.592)  # of cosine decay over 120 steps of a small model
    runs = {value: [loss] for value, loss in zip(grid, measured, strict=True)}
    found = known(find_optimum(runs, Tuning("lr", grid, (1,)).candidates))
    assert found.near == grid[:3]
    assert found.value == 3.4e-3
    assert not found.at_edge


def test_sensitivity_is_the_mean_excess_and_a_diverged_run_counts_with_its_start() -> None:
    runs = {1e-3: [3.2, 3.4], 2e-3: [3.0, 3.0], 4e-3: []}
    found = known(find_optimum(runs, CANDIDATES, {4e-3: [9.0, 9.0]}))
    assert found.sensitivity == pytest.approx((0.3 + 0.0 + 6.0) / 3)
    assert found.means == {1e-3: pytest.approx(3.3), 2e-3: 3.0}
    assert found.value == 2e-3
    assert found.at_edge  # of what survived


def test_an_accuracy_is_maximized() -> None:
    runs = {value: [0.9 - 0.1 * math.log2(value / 2.4e-3) ** 2] for value in GRID}
    found = known(find_optimum(runs, CANDIDATES, higher_is_better=True))
    assert found.value == 2.4e-3
    assert found.means[2e-3] == pytest.approx(runs[2e-3][0])
    assert found.sensitivity > 0
