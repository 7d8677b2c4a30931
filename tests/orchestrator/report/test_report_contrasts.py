"""Factorial designs by least squares: against statsmodels, with missing runs, missing cells and levels."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from statsmodels.regression.linear_model import OLS

from ablatrix.orchestrator.report.contrasts import Combinations, Design, combine
from ablatrix.orchestrator.study.screening import fractional, plackett_burman
from tests.support.designs import mean_of, plant, screened

THREE = {"a": ("a",), "b": ("b",), "c": ("c",)}


def factorial(factors: dict[str, tuple[str, ...]], effects: dict[str, float], seeds: int, noise: float = 0.0) -> Design:
    """Return a full factorial whose effects add up."""
    combined = product(*(("", *group) for group in factors.values()))
    sets = [frozenset(level for level in levels if level) for levels in combined]
    return plant(sets, {frozenset({name}): by for name, by in effects.items()}, seeds, noise, factors)


def means(found: Combinations) -> dict[str, float]:
    return {c.name: c.effect.mean for c in (*found.main_effects, *found.pairs, *found.together) if c.effect}


def test_effects_and_standard_errors_equal_statsmodels() -> None:
    design = factorial(THREE, {"a": -0.2}, 4, noise=0.02)
    del design.values["a+c"][2], design.values["b"][0]  # type: ignore[attr-defined]
    cells = list(design.values)
    features = {name: on for on, name in design.sets.items()}
    rows, y = [], []
    coded = {c: [int(f in features[c]) - 0.5 for f in "abc"] for c in cells}
    for cell in cells:
        x = coded[cell]
        saturated = [1.0, *x, *(x[i] * x[j] for i, j in combinations(range(3), 2)), x[0] * x[1] * x[2]]
        for seed, value in design.values[cell].items():
            rows.append(saturated + [float(seed == s) for s in (1, 2, 3)])
            y.append(value)
    theirs = OLS(np.array(y), np.array(rows)).fit()
    found = combine(design)
    ours = [c.effect for c in (*found.main_effects, *found.pairs)]
    for i, effect in enumerate(ours, start=1):
        assert effect is not None
        low, high = theirs.conf_int(0.05)[i]
        wanted = (theirs.params[i], low, high, theirs.pvalues[i])
        assert (effect.mean, effect.low, effect.high, effect.p) == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    assert [c.missing for c in found.main_effects] == [2, 2, 2]


def test_marginal_means_equal_statsmodels_with_missing_runs() -> None:
    design = factorial(THREE, {"a": -0.2}, 3, noise=0.02)
    del design.values["a+c"][2], design.values["b"][0]  # type: ignore[attr-defined]
    cells, features = list(design.values), {name: on for on, name in design.sets.items()}
    runs = [(cell, seed, value) for cell in cells for seed, value in design.values[cell].items()]
    rows = [[float(cell == c) for c in cells] + [float(seed == s) for s in (1, 2)] for cell, seed, _ in runs]
    theirs = OLS(np.array([value for *_, value in runs]), np.array(rows)).fit()
    for found in combine(design).marginal_means:
        on = [(found.factor in features[cell]) == (found.level != "off") for cell in cells]
        test = theirs.t_test([*(np.array(on) / sum(on)), 1 / 3, 1 / 3])  # over the cells and over all three seeds
        low, high = test.conf_int(0.05)[0]
        assert found.mean == pytest.approx(float(test.effect[0]), abs=1e-12)
        assert found.interval == pytest.approx((low, high), abs=1e-12)


def test_rounded_values_decide_no_main_effect_below_their_unit() -> None:
    design = factorial(THREE, {"a": -0.2}, 30)
    shifts = {name: -0.02 * ("a" in on) - 0.01 * (len(on) == 3) for on, name in design.sets.items()}
    values = {name: {seed: round(3 + shift, 2) for seed in range(30)} for name, shift in shifts.items()}
    a, b, _ = combine(replace(design, values=values)).main_effects
    assert a.decided
    assert b.effect and b.effect.error and b.effect.p_joint is not None
    assert b.effect.mean == pytest.approx(-0.0025)
    assert b.effect.error == pytest.approx(0.01 / np.sqrt(12) * np.sqrt(1 / 2 / 30))
    assert b.effect.p_joint < 0.01 and not b.decided


def test_a_missing_run_does_not_bias() -> None:
    design = factorial(THREE, {"a": -0.07, "b": 0.04}, 3)
    for seed in (0, 2):
        del design.values["a+b"][seed]  # type: ignore[attr-defined]
    found = means(combine(design))
    assert (found["a"], found["b"], found["a × b"]) == pytest.approx((-0.07, 0.04, 0.0), abs=1e-12)


def test_a_missing_cell_leaves_main_effects_and_pairs() -> None:
    design = factorial(THREE, {"a": -0.07, "b": 0.04}, 3)
    design.values["a+b+c"].clear()  # type: ignore[attr-defined]
    found = combine(design)
    assert means(found) == pytest.approx({"a": -0.07, "b": 0.04, "c": 0, "a × b": 0, "a × c": 0, "b × c": 0}, abs=1e-12)
    assert found.together[0].effect is None and found.marginal_means == ()
    design.values["a"].clear()  # type: ignore[attr-defined]
    assert all(c.effect is None for c in combine(design).main_effects)


def test_levels_are_categories_with_marginal_means() -> None:
    factors = {"lr": ("lr.low", "lr.high"), "rope": ("rope",)}
    design = factorial(factors, {"lr.low": 0.1, "lr.high": -0.2, "rope": -0.05}, 3, noise=0.001)
    found = combine(design)
    assert design.is_factorial
    assert [c.name for c in found.main_effects] == ["lr.low", "lr.high", "rope"]
    assert [c.name for c in found.pairs] == ["lr.low × rope", "lr.high × rope"]
    assert found.together == ()
    assert means(found)["lr.high"] == pytest.approx(-0.2, abs=0.003)
    table = {(m.factor, m.level): m for m in found.marginal_means}
    assert list(table) == [("lr", "off"), ("lr", "lr.low"), ("lr", "lr.high"), ("rope", "off"), ("rope", "rope")]
    cells = [np.mean(list(design.values[c].values())) for c in ("lr.high", "lr.high+rope")]
    assert table["lr", "lr.high"].mean == pytest.approx(np.mean(cells), abs=1e-12)
    assert 0 < (table["lr", "lr.high"].half_width or 0) < 0.002


def test_all_together_is_not_called_an_interaction_of_three() -> None:
    found = combine(factorial(THREE, {"a": -0.2}, 3, noise=0.01))
    assert [c.name for c in found.pairs] == ["a × b", "a × c", "b × c"]
    assert [c.name for c in found.together] == ["a+b+c"]


def test_one_seed_makes_no_claim() -> None:
    found = combine(factorial(THREE, {"a": -0.2}, 1, noise=0.01))
    effects = [c.effect for c in found.main_effects]
    assert all(e and e.method == "descriptive" and e.p_joint is None for e in effects)


# ---- screening designs


def regressed(design: Design, pairs: bool) -> OLS:
    """Return the least-squares fit of effects and seeds by statsmodels. Effects are in the first columns."""
    features = {name: on for on, name in design.sets.items()}
    rows, y = [], []
    for cell, each in design.values.items():
        x = [int(f in features[cell]) - 0.5 for f in design.factors]
        products = [a * b for a, b in combinations(x, 2)] if pairs else []
        for seed, value in each.items():
            rows.append([1.0, *x, *products, *(float(seed == s) for s in range(1, 3))])
            y.append(value)
    matrix = np.array(rows)
    return OLS(np.array(y), matrix[:, matrix.any(axis=0)]).fit()


def test_a_fraction_of_resolution_five_equals_statsmodels() -> None:
    truth = {frozenset("a"): -0.1, frozenset("b"): 0.05, frozenset("ab"): 0.04}
    design = screened(fractional(5), truth, seeds=3, noise=0.02)
    del design.values["a+b"][2], design.values["baseline"][0]  # type: ignore[attr-defined]
    theirs = regressed(design, pairs=True)
    found = combine(design)
    assert [c.name for c in found.main_effects] == list("abcde")
    assert [c.name for c in found.pairs][:2] == ["a × b", "a × c"]
    assert len(found.pairs) == 10
    for i, contrast in enumerate((*found.main_effects, *found.pairs), start=1):
        effect = contrast.effect
        assert effect is not None
        low, high = theirs.conf_int(0.05)[i]
        wanted = (theirs.params[i], low, high, theirs.pvalues[i])
        assert (effect.mean, effect.low, effect.high, effect.p) == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_the_standard_error_of_an_effect_is_two_over_the_root_of_the_runs() -> None:
    found = combine(screened(fractional(5), {}, seeds=2, noise=0.0196)).main_effects[0].effect
    assert found is not None and found.low is not None and found.high is not None
    design = screened(fractional(5), {}, seeds=2, noise=0.0196)
    sigma = float(np.sqrt(regressed(design, pairs=True).mse_resid))
    error = (found.high - found.low) / 2 / 2.131449546  # t of 15 degrees of freedom
    assert error == pytest.approx(2 * sigma / np.sqrt(32), rel=1e-8)


def test_a_plackett_burman_design_equals_statsmodels_and_estimates_no_pair() -> None:
    design = screened(plackett_burman(6), {frozenset("a"): -0.1, frozenset("f"): 0.05}, seeds=3, noise=0.02)
    theirs = regressed(design, pairs=False)
    found = combine(design)
    assert [mean_of(c) for c in found.main_effects] == pytest.approx(theirs.params[1:7], rel=1e-9, abs=1e-9)
    assert found.pairs == ()


def test_an_interaction_leaks_into_a_third_of_the_other_effects_of_a_plackett_burman_design() -> None:
    found = combine(screened(plackett_burman(6), {frozenset("ab"): 0.06}))
    leaked = {c.name: round(mean_of(c), 12) for c in found.main_effects}
    assert leaked["a"] == leaked["b"] == 0.03  # half of the interaction belongs to each of its features
    assert {abs(leaked[f]) for f in "cdef"} == {0.01}


def test_aliased_pairs_are_estimated_as_their_sum() -> None:
    truth = {frozenset("ab"): 0.06, frozenset("ce"): -0.02, frozenset("d"): -0.1}
    found = combine(screened(fractional(6, 4), truth))
    pairs = {c.name: round(mean_of(c), 12) for c in found.pairs}
    assert pairs["a × b + c × e + d × f"] == 0.04
    assert sum(value != 0 for value in pairs.values()) == 1
    assert {c.name: round(mean_of(c), 12) for c in found.main_effects}["d"] == -0.1


def test_at_resolution_three_a_pair_shows_as_a_main_effect() -> None:
    found = combine(screened(fractional(7, 3), {frozenset("ab"): 0.06}))
    main = {c.name: round(mean_of(c), 12) for c in found.main_effects}
    assert found.pairs == ()
    assert main == {"a": 0.03, "b": 0.03, "c": 0, "d": 0, "e": -0.03, "f": 0, "g": 0}  # E = AB


def test_other_cells_of_the_study_do_not_change_the_effects_of_a_screening_design() -> None:
    design = screened(fractional(5), {frozenset("a"): -0.1})
    design.sets[frozenset("abcde")] = "all_on"  # type: ignore[index]
    design.values["all_on"] = {0: 9.0, 1: 9.0}  # type: ignore[index]
    assert mean_of(combine(design).main_effects[0]) == pytest.approx(-0.1, abs=1e-12)


def test_a_screening_design_without_a_cell_has_no_result_where_it_needs_it() -> None:
    design = screened(fractional(5), {})
    design.values["a+b"].clear()  # type: ignore[attr-defined]
    assert all(c.effect is None and c.missing == 2 for c in combine(design).main_effects)
    design = screened(plackett_burman(5), {frozenset("c"): 0.05})
    design.values["baseline"].clear()  # type: ignore[attr-defined]
    assert mean_of(combine(design).main_effects[2]) == pytest.approx(0.05, abs=1e-12)
