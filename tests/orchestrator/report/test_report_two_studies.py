"""Differences between two studies, against scipy and in the report of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from ablatrix.orchestrator.report import two_studies
from ablatrix.orchestrator.report.build import compare
from ablatrix.orchestrator.report.statistics import Effect
from tests.support.studies import Plan, write_study


@pytest.mark.parametrize("sizes", [(2, 2), (3, 5), (8, 4)])
def test_a_difference_of_means_is_welchs_test(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(sizes)
    samples = [rng.normal(i, 1 + i, n) for i, n in enumerate(sizes)]
    first, second = (two_studies.estimate_of_mean(dict(enumerate(sample.tolist()))) for sample in samples)
    assert first and second
    found = two_studies.difference(first, second)
    expected = stats.ttest_ind(samples[1], samples[0], equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


def test_an_effect_is_taken_with_its_own_degrees_of_freedom() -> None:
    half = 0.01 * stats.t.ppf(0.975, 12)
    estimate = two_studies.estimate_of_effect(Effect(-0.1, 3, "pooled", -0.1 - half, -0.1 + half, 0.001, df=12))
    assert estimate and (estimate.error, estimate.df) == (pytest.approx(0.01), 12)
    assert two_studies.estimate_of_effect(Effect(-0.1, 1, "descriptive")) is None
    assert two_studies.estimate_of_mean({1: 3.0}) is None


def test_interval_and_p_value_of_a_table_are_one_statement() -> None:
    estimates = [two_studies.Estimate(mean, 0.01, 7.5, 3) for mean in (0.0, 0.02, 0.03, 0.04, 0.05)]
    effects = [two_studies.difference(estimates[0], other) for other in estimates]
    for effect in two_studies.corrected([None, *effects]):
        if effect is not None and effect.p_joint is not None:
            assert (effect.p_joint < 0.05) == (effect.at_least is not None)
            assert effect.p_joint == min(1.0, 5 * (effect.p or 0))


@pytest.mark.slow
def test_two_studies_are_tested_against_each_other(tmp_path: Path) -> None:
    for i, (name, effect) in enumerate((("a", -0.1), ("b", -0.2))):
        write_study(tmp_path / name, Plan(name=name, effects={"swiglu": effect, "rope": -0.05}, rng=i))
    made = compare([tmp_path / "a", tmp_path / "b"])
    found = {entry["name"]: entry["effect"] for entry in made.record["differences"]}
    assert found["effect of swiglu · b − a"]["joint_high"] < 0
    assert found["effect of rope · b − a"]["joint_low"] < 0 < found["effect of rope · b − a"]["joint_high"]
    assert "baseline · b − a" in found
    text = (tmp_path / "compare-a-b" / "report.md").read_text()
    assert "| b − a | change |" in text
    assert "| effect of swiglu | −0.1" in text
    assert "differences.png" in {path.name for path in made.paths}
    assert made.differences is not None
    assert [row.label for row in made.differences.rows][:2] == ["baseline", "effect of swiglu"]
