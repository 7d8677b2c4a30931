"""The line of effects over compute, the baseline's loss curve and compute-equivalent gains, as pure functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statsmodels.api as sm

from ablatrix.orchestrator.report.scaling import Point, find_gain, fit_line, fit_loss
from ablatrix.trainer.rundir.errors import UserError

COMPUTE = (1e12, 5e12, 3e13, 1e14)


def points(effects: list[float], errors: list[float]) -> list[Point]:
    found = zip(COMPUTE, effects, errors, strict=False)
    return [Point(f"size{i}", c, effect, error, 6) for i, (c, effect, error) in enumerate(found)]


@pytest.mark.parametrize(
    ("effects", "scattered"),
    [([-0.10, -0.09, -0.085, -0.07], False), ([-0.10, -0.02, -0.12, -0.01], True)],
)
def test_the_line_is_that_of_weighted_least_squares(effects: list[float], scattered: bool) -> None:
    errors = [0.02, 0.012, 0.01, 0.006]
    line = fit_line(points(effects, errors))
    assert line is not None
    design = sm.add_constant(np.log(COMPUTE))
    known = sm.WLS(effects, design, weights=1 / np.array(errors) ** 2).fit(
        cov_type="nonrobust" if scattered else "fixed scale"
    )
    assert np.allclose([line.intercept, line.slope], known.params, rtol=1e-9, atol=0)
    assert np.allclose(line.covariance, known.cov_params(), rtol=1e-9, atol=0)
    assert (line.lack_of_fit or 1) < 0.05 if scattered else (line.lack_of_fit or 0) > 0.05
    mean = known.get_prediction([[1.0, math.log(2e14)]])
    predicted = line.at(2e14)
    assert np.isclose(predicted.effect, mean.predicted_mean[0], rtol=1e-9)
    assert np.isclose((predicted.high - predicted.low) / 2, 2.0638985616280205 * mean.se_mean[0], rtol=1e-9)  # 24 df
    assert predicted.extrapolated
    assert predicted.seen_low < predicted.low < predicted.high < predicted.seen_high


def test_nothing_is_predicted_beyond_ten_times_the_largest_compute() -> None:
    line = fit_line(points([-0.1, -0.08, -0.06, -0.05], [0.01] * 4))
    assert line is not None
    assert not line.at(1e14).extrapolated
    assert line.at(1e15).extrapolated
    with pytest.raises(UserError, match="20 times the largest compute of the study; effects are predicted up to"):
        line.at(2e15)


def test_one_size_or_an_effect_without_an_error_gives_no_line() -> None:
    assert fit_line(points([-0.1], [0.01])) is None
    assert fit_line(points([-0.1, 0.0], [0.01, 0.0])) is None


def test_a_gain_is_found_on_the_power_law_of_the_baseline() -> None:
    def loss(compute: float) -> float:
        return 1.7 + 40 * compute**-0.12

    curve = fit_loss(COMPUTE, [loss(c) for c in COMPUTE], [0.01] * 4)
    assert curve is not None
    assert curve.law is not None
    assert np.allclose(curve.law, (1.7, 40, 0.12), rtol=1e-3)
    effect = loss(6e13) - loss(3e13)  # a cell at 3e13 that is as good as the baseline at twice that
    gain = find_gain(curve, 3e13, 3e13, (effect, effect - 0.01, effect + 0.01))
    assert np.isclose(gain.value, 2, rtol=1e-3)
    assert gain.low < 2 < gain.high
    assert not gain.extrapolated
    assert np.isclose(find_gain(curve, 3e13, 4e13, (0.0, -0.01, 0.01)).value, 0.75)  # no effect, more FLOPs
    far = find_gain(curve, 1e14, 1e14, (loss(3e14) - loss(1e14), -2.0, 0.0))
    assert far.extrapolated
    assert np.isclose(far.value, 3, rtol=1e-3)
    assert far.high == math.inf  # beyond 10 times the largest compute


def test_with_three_sizes_the_loss_is_interpolated() -> None:
    curve = fit_loss(COMPUTE[:3], [4.0, 3.5, 3.0], [0.01] * 3)
    assert curve is not None
    assert curve.law is None
    assert np.isclose(curve.at(5e12), 3.5)
    assert np.isclose(curve.at(math.sqrt(1e12 * 5e12)), math.sqrt(4.0 * 3.5))
    assert np.isclose(curve.compute_for(curve.at(2e13)), 2e13)
    assert np.isclose(curve.compute_for(curve.at(9e13)), 9e13)  # along the last two sizes
    assert curve.compute_for(-1.0) == math.inf


def test_a_loss_that_rises_with_compute_has_no_curve() -> None:
    assert fit_loss(COMPUTE, [4.0, 3.5, 3.6, 3.0], [0.01] * 4) is None
