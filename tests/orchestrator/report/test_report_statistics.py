"""The statistics against scipy and statsmodels, by independent code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy.integrate import quad
from scipy.special import gammaln, ndtr, xlogy
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests

from ablatrix.orchestrator.report import homogeneity
from ablatrix.orchestrator.report import statistics as st
from ablatrix.orchestrator.report.comparison import Comparison, compare, find_resolution
from ablatrix.orchestrator.report.pooled import connected, fit
from ablatrix.orchestrator.report.simultaneous import Joint, product_loadings

HALF = math.sqrt(0.5)


def tight(value: Any) -> Any:
    """Equal to 1e-9."""
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def drawn(cells: int, seeds: int, missing: int = 0, rng: int = 0) -> dict[str, dict[int, float]]:
    """Return a study without effects: cell -> seed -> value, some runs missing."""
    random = np.random.default_rng([rng, cells, seeds])
    values = random.normal(3, 0.02, (cells, seeds)) + random.normal(0, 0.01, seeds)
    gone = set(random.permutation(np.arange(seeds, cells * seeds))[:missing].tolist())
    found = {f"c{i}": {s: float(values[i, s]) for s in range(seeds) if i * seeds + s not in gone} for i in range(cells)}
    return {name: row for name, row in found.items() if row}


def least_squares(study: dict[str, dict[int, float]]) -> tuple[Any, np.ndarray]:
    """Return statsmodels' fit of value ~ cell + seed, and the contrasts of each cell with the first one."""
    cells, seeds = list(study), sorted({s for row in study.values() for s in row})
    runs = [(cells.index(c), seeds.index(s), v) for c, row in study.items() for s, v in row.items()]
    design = np.zeros((len(runs), len(cells) + len(seeds) - 1))
    for i, (cell, seed, _) in enumerate(runs):
        design[i, cell] = 1
        if seed:
            design[i, len(cells) + seed - 1] = 1
    contrasts = np.zeros((len(cells) - 1, design.shape[1]))
    contrasts[:, 0], contrasts[range(len(cells) - 1), range(1, len(cells))] = -1, 1
    return OLS(np.array([v for _, _, v in runs]), design).fit(), contrasts


@pytest.mark.parametrize(("cells", "seeds", "missing"), [(2, 2, 0), (7, 3, 0), (7, 3, 2), (12, 4, 9), (3, 20, 12)])
def test_the_pooled_fit_equals_statsmodels(cells: int, seeds: int, missing: int) -> None:
    study = drawn(cells, seeds, missing)
    theirs, contrasts = least_squares(study)
    ours = fit(study)
    estimates, units, joint = ours.against("c0")
    covariance = contrasts @ theirs.cov_params() @ contrasts.T
    assert (ours.df, joint.df) == (theirs.df_resid, theirs.df_resid)
    assert estimates == tight(contrasts @ theirs.params)
    assert np.sqrt(units * ours.variance) == tight(np.sqrt(np.diag(covariance)))
    weights = contrasts[:, : len(study)]
    assert ours.covariance(weights) * ours.variance == tight(covariance)
    assert ours.residuals[ours.known] == tight(theirs.resid)
    own = ours.own_variances[~np.isnan(ours.own_variances)]
    freedom = 1 - theirs.get_influence().hat_matrix_diag
    rows = np.repeat(np.arange(len(study)), [len(row) for row in study.values()])
    squares = [(theirs.resid[rows == i] ** 2).sum() / freedom[rows == i].sum() for i in range(len(study))]
    assert own == tight([v for v, row in zip(squares, study.values(), strict=True) if len(row) > 1])


def test_pooled_effects_have_statsmodels_intervals() -> None:
    study = drawn(7, 5, 3, rng=1)
    theirs, contrasts = least_squares(study)
    found, pool = compare(study, "c0"), fit(study)
    interval, p = theirs.t_test(contrasts).conf_int(0.05), theirs.t_test(contrasts).pvalue
    quiet = [i for i, name in enumerate(study) if i and pool.own_variances[i] <= pool.variance]
    assert len(quiet) >= 2
    for i in quiet:
        effect = found.effects[f"c{i}"]
        assert (effect.low, effect.high, effect.p) == tight((*interval[i - 1], p[i - 1]))
        assert (effect.method, effect.n) == ("pooled", len(study[f"c{i}"]))


@pytest.mark.parametrize(("b", "m", "df"), [(HALF, 6, 12), (HALF, 2, 1), (0.0, 6, 4), (0.9, 30, 58), (HALF, 200, 798)])
def test_simultaneous_p_values_equal_nested_quadrature(b: float, m: int, df: int) -> None:
    rest = math.sqrt(1 - b * b)
    chi = scipy.stats.chi2(df)

    def within(limit: float) -> float:
        def integrand(z: float) -> float:
            between = ndtr((limit - b * z) / rest) - ndtr((-limit - b * z) / rest)
            return float(between**m * math.exp(-z * z / 2) / math.sqrt(2 * math.pi))

        return float(quad(integrand, -9, 9, epsabs=1e-12, points=[-limit / b, limit / b] if b else None, limit=200)[0])

    for t in (1.0, 3.0):
        low, high = chi.ppf(1e-13), chi.isf(1e-13)

        def outside(q: float, t: float = t) -> float:
            density = math.exp(xlogy(df / 2 - 1, q) - q / 2 - gammaln(df / 2) - df / 2 * math.log(2))
            return (1 - within(t * math.sqrt(q / df))) * density

        theirs = quad(outside, low, high, epsabs=1e-11)[0]
        assert Joint(((b, m),), df).p_value(t) == pytest.approx(theirs, abs=2e-9 if df > 1 else 1e-6)


def test_correlations_of_an_unbalanced_study_are_close_enough() -> None:
    study = drawn(8, 4, 8, rng=3)
    theirs, contrasts = least_squares(study)
    covariance = contrasts @ theirs.cov_params() @ contrasts.T
    correlation = covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    joint = fit(study).against("c0")[2]
    for t in (1.5, 2.5, 3.5):
        limit = np.full(len(correlation), t)
        inside = scipy.stats.multivariate_t.cdf(
            limit, shape=correlation, df=joint.df, lower_limit=-limit, maxpts=200_000, random_state=1
        )
        assert joint.p_value(t) == pytest.approx(1 - inside, rel=2e-3, abs=1e-5)
    again = product_loadings(correlation, [1] * len(correlation))
    assert Joint(again, joint.df).p_value(2.5) == tight(joint.p_value(2.5))


def test_without_seeds_it_is_the_classical_dunnett_test() -> None:
    study = {name: {s + 100 * i: v for s, v in row.items()} for i, (name, row) in enumerate(drawn(4, 5, 3).items())}
    study["c2"] = {s: v - 0.05 for s, v in study["c2"].items()}
    effects = compare(study, "c0").effects
    samples = [np.array(list(row.values())) for row in study.values()]
    pool = fit(study, blocks=False)
    theirs = scipy.stats.dunnett(*samples[1:], control=samples[0], random_state=1)
    estimates, units, joint = pool.against("c0")
    statistics = estimates / np.sqrt(units * pool.variance)
    assert statistics == tight(theirs.statistic)
    assert joint.p_values(statistics) == pytest.approx(theirs.pvalue, abs=1e-3)
    assert {e.method for e in effects.values()} == {"unpaired"}


def test_many_p_values_are_interpolated() -> None:
    joint = Joint(((HALF, 499),), 1996)
    t = np.linspace(0, 9, 301)
    assert joint.p_values(t) == pytest.approx([joint.p_value(x) for x in t], abs=1e-8)


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_single_runs_have_a_prediction_interval(seeds: int) -> None:
    base = np.random.default_rng(seeds).normal(3, 0.1, seeds)
    effect = compare({"base": dict(enumerate(base.tolist())), "cell": {99: 3.4}}, "base").effects["cell"]
    frame = OLS(base, np.ones(seeds)).fit().get_prediction([1.0]).summary_frame(alpha=0.05)
    assert effect.half_width == tight(float(frame["obs_ci_upper"].iloc[0] - frame["mean"].iloc[0]))
    assert effect.mean == tight(3.4 - base.mean())
    assert (effect.joint_low, effect.p_joint) == tight((effect.low, effect.p))


@pytest.mark.parametrize("seeds", [2, 3, 30])
def test_one_comparison_is_the_paired_t_test(seeds: int) -> None:
    study = drawn(2, seeds, rng=seeds)
    effect = compare(study, "c0").effects["c1"]
    theirs = scipy.stats.ttest_rel(list(study["c1"].values()), list(study["c0"].values()))
    interval = theirs.confidence_interval(0.95)
    for found in (effect, effect.paired):
        assert found is not None
        assert (found.low, found.high, found.p) == tight((interval.low, interval.high, theirs.pvalue))
    assert (effect.joint_low, effect.p_joint) == tight((effect.low, effect.p))


@settings(max_examples=25, deadline=None, database=None)
@given(some.lists(some.one_of(some.none(), some.floats(0, 1)), max_size=12))
@pytest.mark.slow
def test_holm_equals_statsmodels(p_values: list[float | None]) -> None:
    ours = st.holm(p_values)
    tested = [p for p in p_values if p is not None]
    assert [p is None for p in ours] == [p is None for p in p_values]
    if tested:
        theirs = multipletests(tested, method="holm")[1]
        assert [p for p in ours if p is not None] == tight(theirs.tolist())


def scaled(missing: int = 0, **scales: float) -> dict[str, dict[int, float]]:
    """Return a study in which some cells are noisier."""
    study = drawn(7, 5, missing, rng=7)
    return {n: {s: 3 + (v - 3) * scales.get(n, 1.0) for s, v in row.items()} for n, row in study.items()}


def test_tests_of_equal_noise_equal_scipys() -> None:
    pool = fit(scaled(3, c2=2.0))
    residuals = [row[~np.isnan(row)] for row in pool.residuals]
    assert homogeneity.levene(pool) == tight(scipy.stats.levene(*residuals).pvalue)
    whole = fit(scaled(c2=2.0))  # the residuals of a cell sum to 0 in any case
    assert homogeneity.bartlett(whole) == tight(scipy.stats.bartlett(*whole.residuals).pvalue)


@pytest.mark.parametrize("missing", [0, 2])
def test_two_cells_have_no_test_of_equal_noise(missing: int) -> None:
    pool = fit(drawn(2, 6, missing, rng=3))
    assert np.abs(pool.residuals[0]) == tight(np.abs(pool.residuals[1])) or missing
    assert (homogeneity.bartlett(pool), homogeneity.levene(pool)) == (None, None)


@pytest.mark.parametrize("missing", [0, 6])
def test_the_intraclass_correlation_is_hendersons(missing: int) -> None:
    pool = fit(drawn(5, 6, missing, rng=8))
    row, column = np.nonzero(pool.known)
    seeds, cells = np.eye(6)[column], np.eye(5)[row]
    y = pool.table[pool.known]
    within = np.eye(len(y)) - cells @ np.linalg.pinv(cells)
    both = np.hstack([cells, seeds[:, 1:]])
    explained = float(y @ within @ y) - float(OLS(y, both).fit().ssr)
    noise = float(OLS(y, both).fit().ssr) / pool.df
    between = (explained - 5 * noise) / float(np.trace(seeds.T @ within @ seeds))
    assert homogeneity.intraclass_correlation(pool) == tight(max(0.0, between) / (max(0.0, between) + noise))


def test_identical_cells_are_in_no_correction() -> None:
    study = drawn(5, 4, rng=5)
    study["c4"] = study["c0"]
    effects = compare(study, "c0", identical=["c4"]).effects
    assert effects["c4"].paired is None
    base = list(study["c0"].values())
    p = [scipy.stats.ttest_rel(list(study[n].values()), base).pvalue for n in ("c1", "c2", "c3")]
    theirs = multipletests(p, method="holm")[1]
    assert [found.p_joint for n in ("c1", "c2", "c3") if (found := effects[n].paired)] == tight(theirs.tolist())


def test_a_far_noisier_cell_leaves_the_pool() -> None:
    study = scaled(c3=30.0)
    found = compare(study, "c0")
    assert found.odd == ("c3",)
    assert [n for n, e in found.effects.items() if e.method == "paired t"] == ["c3"]
    theirs = scipy.stats.ttest_rel(list(study["c3"].values()), list(study["c0"].values()))
    noisy, quiet = found.effects["c3"], found.effects["c1"]
    assert (noisy.p, noisy.p_joint) == tight((theirs.pvalue, min(1.0, 6 * theirs.pvalue)))
    assert quiet.df == 5 * 4
    assert compare(scaled(), "c0").odd == ()


def test_a_far_noisier_baseline_leaves_paired_tests() -> None:
    found = compare(scaled(c0=40.0), "c0")
    assert found.odd == ("c0",)
    assert {e.method for e in found.effects.values()} == {"paired t"}


def test_a_noisier_cell_counts_with_its_own_noise() -> None:
    study = scaled(c3=3.0)
    pool = fit(study)
    own = pool.own_variances[3]
    assert own > 1.2 * pool.variance
    effect = compare(study, "c0").effects["c3"]
    error = math.sqrt((pool.variance + own) / 5)
    assert effect.half_width == tight(error * scipy.stats.t.ppf(0.975, pool.df))


def test_an_outlier_is_named_and_kept() -> None:
    study = drawn(7, 5, rng=2)
    study["c4"][2] += 0.5
    found = compare(study, "c0")
    assert found.outliers == (("c4", 2),)
    effect = found.effects["c4"]
    assert effect.mean == tight(np.mean([study["c4"][s] - study["c0"][s] for s in range(5)]))
    kept = {n: {s: v for s, v in row.items() if (n, s) != ("c4", 2)} for n, row in study.items()}
    without = {"c0": kept["c0"], "c4": kept["c4"]} if found.odd else kept
    theirs, contrasts = least_squares(without)
    assert effect.without_outliers == tight((contrasts @ theirs.params)[0 if found.odd else 3])
    assert found.effects["c1"].without_outliers is None
    assert compare(drawn(7, 5, rng=2), "c0").outliers == ()


def test_an_outlier_of_two_cells_is_the_run_far_from_its_cell() -> None:
    study = drawn(2, 8, rng=2)
    study["c1"][3] += 1.0
    assert compare(study, "c0").outliers == (("c1", 3),)


def test_one_pair_claims_nothing() -> None:
    effect = compare({"base": {1: 3.1}, "cell": {1: 3.0}}, "base").effects["cell"]
    assert (effect.method, effect.low, effect.p, effect.p_joint) == ("descriptive", None, None, None)
    assert effect.mean == pytest.approx(-0.1)
    assert compare({"base": {}, "cell": {1: 3.0}}, "base").effects == Comparison().effects


def test_a_cell_with_one_run_is_judged_in_the_pool_of_the_others() -> None:
    study = drawn(7, 3, rng=4)
    study["c6"] = {1: study["c6"][1]}
    effect = compare(study, "c0").effects["c6"]
    theirs, contrasts = least_squares(study)
    low, high = theirs.t_test(contrasts[5]).conf_int(0.05)[0]
    assert (effect.method, effect.n, effect.low, effect.high) == ("pooled", 1, tight(low), tight(high))


def test_cells_without_a_common_seed_are_not_connected() -> None:
    study = {"base": {1: 1.0, 2: 1.1}, "near": {2: 1.0, 3: 1.0}, "next": {3: 1.0}, "far": {9: 1.0}}
    assert list(connected(study, "base")) == ["base", "near", "next"]


def test_rounded_values_have_a_floor_of_the_standard_error() -> None:
    assert find_resolution([3.276, 3.28, 3.0]) == pytest.approx(0.001)
    assert find_resolution([3.2763712345]) < 1e-9
    study = {"base": {1: 3.27, 2: 3.27, 3: 3.27}, "cell": {1: 3.28, 2: 3.28, 3: 3.28}}
    effect = compare(study, "base").effects["cell"]
    assert effect.p is not None
    assert effect.half_width == tight(0.01 / math.sqrt(18) * scipy.stats.t.ppf(0.975, 2))


def test_equivalence_is_two_one_sided_tests() -> None:
    study = drawn(2, 8, rng=6)
    effect = compare(study, "c0").effects["c1"]
    differences = np.array([study["c1"][s] - study["c0"][s] for s in range(8)])
    assert effect.within is not None
    for margin, claimed in ((effect.within * 1.001, True), (effect.within * 0.999, False)):
        upper = scipy.stats.ttest_1samp(differences, margin, alternative="less").pvalue
        lower = scipy.stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
        assert (max(upper, lower) < 0.05) == claimed


def test_a_table_among_several_has_its_share_of_the_error_rate() -> None:
    study = drawn(4, 5, rng=9)
    one, ten = compare(study, "c0").effects["c2"], compare(study, "c0", tables=10).effects["c2"]
    assert one.p_joint is not None
    assert ten.p_joint == tight(min(1.0, 10 * one.p_joint))
    assert ten.p == one.p
