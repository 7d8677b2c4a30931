"""The statistics against scipy and statsmodels, and by simulation."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as some
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import DescrStatsW

from ablatrix.orchestrator.report import statistics as st


def tight(value: Any) -> Any:
    """Equal to 1e-9."""
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def by_seed(values: np.ndarray) -> dict[int, float]:
    return dict(enumerate(values.tolist()))


@pytest.mark.parametrize("seeds", [2, 3, 5, 30])
def test_paired_interval_equals_scipy_and_statsmodels(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    for _ in range(50):
        cell, base = rng.normal(3, 0.05, seeds), rng.normal(3, 0.05, seeds)
        effect = st.difference(by_seed(cell), by_seed(base))
        assert effect is not None
        assert effect.method == "paired t"
        theirs = scipy.stats.ttest_rel(cell, base)
        interval = theirs.confidence_interval(0.95)
        assert (effect.low, effect.high) == tight((interval.low, interval.high))
        assert effect.p == tight(theirs.pvalue)
        assert (effect.low, effect.high) == tight(DescrStatsW(cell - base).tconfint_mean(0.05))


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


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_prediction_interval_equals_a_regression_on_a_constant(seeds: int) -> None:
    base = np.random.default_rng(seeds).normal(3, 0.1, seeds)
    effect = st.prediction({99: 3.4}, by_seed(base))
    assert effect is not None
    # the interval for one new run of the baseline, and ours around the run that was made: the same width
    frame = OLS(base, np.ones(seeds)).fit().get_prediction([1.0]).summary_frame(alpha=0.05)
    half = float(frame["obs_ci_upper"].iloc[0] - frame["mean"].iloc[0])
    assert effect.half_width == tight(half)
    assert effect.mean == tight(3.4 - base.mean())
    t = effect.mean / (base.std(ddof=1) * math.sqrt(1 + 1 / seeds))
    assert effect.p == tight(2 * scipy.stats.t.sf(abs(t), seeds - 1))


@pytest.mark.parametrize("seeds", [3, 5])
def test_coverage_and_false_alarms_of_2000_simulated_studies(seeds: int) -> None:
    rng = np.random.default_rng(20 + seeds)
    studies, features, true = 2000, 6, -0.01
    shared = rng.normal(0, 0.02, (studies, 1, seeds))
    runs = 3 + shared + rng.normal(0, 0.013, (studies, features + 1, seeds))  # cell 0 is the baseline
    covered = alarms = 0
    for study in runs:
        base = by_seed(study[0])
        p_values = []
        for cell in study[1:]:
            effect = st.difference(by_seed(cell + true), base)
            assert effect is not None
            assert effect.low is not None
            assert effect.high is not None
            covered += effect.low <= true <= effect.high
            null = st.difference(by_seed(cell), base)
            assert null is not None
            p_values.append(null.p)
        alarms += any(p is not None and p <= st.ALPHA for p in st.holm(p_values))
    assert 0.935 <= covered / (studies * features) <= 0.965
    assert alarms / studies <= 0.06


def test_prediction_covers_too() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(2000):
        effect = st.prediction({1: rng.normal(2.9, 0.1)}, by_seed(rng.normal(3, 0.1, 3)))
        assert effect is not None
        assert effect.low is not None
        assert effect.high is not None
        covered += effect.low <= -0.1 <= effect.high
    assert 0.935 <= covered / 2000 <= 0.965


def test_one_pair_claims_nothing() -> None:
    effect = st.difference({1: 3.0}, {1: 3.1})
    assert effect is not None
    assert (effect.method, effect.low, effect.high, effect.p) == ("descriptive", None, None, None)
    assert effect.mean == pytest.approx(-0.1)


def test_the_method_follows_the_runs_that_there_are() -> None:
    base = {1: 3.0, 2: 3.1, 3: 3.2}
    cases = {
        "paired t": ({1: 2.9, 3: 3.0}, base),
        "prediction": ({9: 2.9}, base),
        "descriptive": ({9: 2.9}, {1: 3.0}),
    }
    for method, (cell, against) in cases.items():
        effect = st.difference(cell, against)
        assert effect is not None
        assert effect.method == method
    assert st.difference({}, base) is None
    assert st.difference(base, {}) is None
    paired = st.difference({1: 2.9, 3: 3.0, 7: 9.0}, base)
    assert paired is not None
    assert paired.seeds == (1, 3)


def test_equal_values_are_identical_and_not_significant() -> None:
    same = st.t_interval({1: 0.0, 2: 0.0, 3: 0.0})
    assert same is not None
    assert same.identical
    assert same.p == 1.0
    shifted = st.t_interval({1: 0.1, 2: 0.1})
    assert shifted is not None
    assert not shifted.identical
    assert (shifted.low, shifted.high, shifted.p) == (0.1, 0.1, 0.0)


def full_design(effects: dict[str, float], pairs: dict[frozenset[str], float], seeds: int) -> dict:
    cells = {}
    for size in range(len(effects) + 1):
        for chosen in combinations(effects, size):
            on = frozenset(chosen)
            value = 3 + sum(effects[f] for f in on) + sum(v for p, v in pairs.items() if p <= on)
            cells[on] = {s: value + 0.01 * s for s in range(seeds)}
    return cells


def test_factorial_finds_main_effects_and_interactions() -> None:
    cells = full_design({"a": -0.2, "b": 0.1, "c": 0.0}, {frozenset("ab"): 0.08}, 3)
    found = {f.factors: f for f in st.factorial(cells, ["a", "b", "c"])}
    expected = {("a",): -0.16, ("b",): 0.14, ("c",): 0.0, ("a", "b"): 0.08, ("a", "c"): 0.0, ("b", "c"): 0.0}
    assert found.keys() == expected.keys()
    for factors, value in expected.items():
        effect = found[factors].effect
        assert effect is not None
        assert effect.mean == pytest.approx(value, abs=1e-12)
        assert found[factors].missing == 0


def test_factorial_equals_least_squares() -> None:
    rng = np.random.default_rng(8)
    names = ["a", "b", "c"]
    cells = {on: {0: rng.normal()} for on in full_design(dict.fromkeys(names, 0.0), {}, 1)}
    rows = [[int(n in on) - 0.5 for n in names] for on in cells]
    products = [[r[i] * r[j] for i, j in combinations(range(3), 2)] for r in rows]
    design = np.column_stack([np.ones(8), rows, products])
    fitted = OLS(np.array([v[0] for v in cells.values()]), design).fit().params[1:]
    ours = [f.effect.mean for f in st.factorial(cells, names) if f.effect]
    assert ours == tight(fitted.tolist())


def test_factorial_counts_what_is_missing() -> None:
    cells = full_design({"a": -0.2, "b": 0.1}, {}, 2)
    del cells[frozenset("ab")][1]
    found = {f.factors: f for f in st.factorial(cells, ["a", "b"])}
    assert found["a",].missing == 1
    effect = found["a",].effect
    assert effect is not None
    assert effect.mean == pytest.approx(-0.2)
    assert found["a", "b"].missing == 1
    alone = found["a", "b"].effect
    assert alone is not None
    assert alone.n == 1


def test_contrast_leaves_out_seeds_that_lack_a_cell() -> None:
    cells = {"all": {1: 2.0, 2: 2.1}, "a": {1: 2.5, 2: 2.5}, "base": {1: 3.0}}
    effect = st.contrast(cells, {"all": 1.0, "a": -2.0, "base": 1.0})
    assert effect is not None
    assert effect.seeds == (1,)
    assert effect.mean == pytest.approx(0.0)


def test_reading_a_curve() -> None:
    x, y = np.array([0.0, 10.0, 20.0]), np.array([5.0, 3.0, 2.0])
    assert st.at(x, y, 5.0) == pytest.approx(4.0)
    assert st.at(x, y, 21.0) is None
    assert st.at(x, y, -1.0) is None
    assert st.first_reach(x, y, 3.5) == pytest.approx(7.5)
    assert st.first_reach(x, y, 3.0) == 10.0
    assert st.first_reach(x, y, 6.0) == 0.0
    assert st.first_reach(x, y, 1.9) is None
    wavy = np.array([5.0, 2.5, 4.0])
    assert st.first_reach(x, wavy, 3.0) == pytest.approx(8.0)


def test_reach_is_censored_where_the_target_was_not_met() -> None:
    reach = st.reach({1: 50.0, 2: None}, {1: 100.0, 2: 100.0}, {1: 100.0, 2: 100.0})
    assert reach.censored
    assert (reach.reached, reach.limits) == ((50.0,), (100.0,))
    assert reach.factor == pytest.approx(math.sqrt(2))
    assert not st.reach({1: 50.0}, {1: 100.0}, {1: 100.0}).censored


def test_a_planted_effect_of_two_seed_spreads_is_found_at_five_seeds() -> None:
    rng = np.random.default_rng(11)
    shared, own = 0.012, 0.004  # what a seed does to all cells, and to one
    spread = math.hypot(shared, own)
    found = clean = 0
    studies = 2000
    for _ in range(studies):
        runs = 3 + rng.normal(0, shared, (1, 5)) + rng.normal(0, own, (7, 5))
        runs[1] -= 2 * spread
        effects = [st.difference(by_seed(cell), by_seed(runs[0])) for cell in runs[1:]]
        corrected = st.holm([e.p if e else None for e in effects])
        found += corrected[0] is not None and corrected[0] <= st.ALPHA
        clean += all(p is not None and p > st.ALPHA for p in corrected[1:])
    assert found / studies >= 0.95
    assert clean / studies >= 0.94
