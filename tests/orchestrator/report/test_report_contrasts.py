"""Factorial designs by least squares: against statsmodels, with missing runs, missing cells and levels."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from statsmodels.regression.linear_model import OLS

from ablatrix.orchestrator.report.contrasts import Combinations, Design, combine

THREE = {"a": ("a",), "b": ("b",), "c": ("c",)}


def designed(
    factors: dict[str, tuple[str, ...]], effects: dict[str, float], seeds: int, noise: float = 0.0, rng: int = 0
) -> Design:
    """Return a full factorial whose effects add up, with seeds that differ by 0.01."""
    random = np.random.default_rng(rng)
    sets, values = {}, {}
    for levels in product(*(("", *group) for group in factors.values())):
        on = frozenset(level for level in levels if level)
        name = "+".join(sorted(on)) or "baseline"
        sets[on] = name
        value = 3 + sum(effects.get(level, 0.0) for level in on)
        values[name] = {s: value + 0.01 * s + float(random.normal(0, noise)) for s in range(seeds)}
    return Design(sets, factors, values, dict.fromkeys(values, seeds))


def means(found: Combinations) -> dict[str, float]:
    return {c.name: c.effect.mean for c in (*found.main_effects, *found.pairs, *found.together) if c.effect}


def test_effects_and_standard_errors_equal_statsmodels() -> None:
    design = designed(THREE, {"a": -0.2}, 4, noise=0.02, rng=1)
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


def test_a_missing_run_does_not_bias() -> None:
    design = designed(THREE, {"a": -0.07, "b": 0.04}, 3)
    for seed in (0, 2):
        del design.values["a+b"][seed]  # type: ignore[attr-defined]
    found = means(combine(design))
    assert (found["a"], found["b"], found["a × b"]) == pytest.approx((-0.07, 0.04, 0.0), abs=1e-12)


def test_a_missing_cell_leaves_main_effects_and_pairs() -> None:
    design = designed(THREE, {"a": -0.07, "b": 0.04}, 3)
    design.values["a+b+c"].clear()  # type: ignore[attr-defined]
    found = combine(design)
    assert means(found) == pytest.approx({"a": -0.07, "b": 0.04, "c": 0, "a × b": 0, "a × c": 0, "b × c": 0}, abs=1e-12)
    assert found.together[0].effect is None and found.marginal_means == ()
    design.values["a"].clear()  # type: ignore[attr-defined]
    assert all(c.effect is None for c in combine(design).main_effects)


def test_levels_are_categories_with_marginal_means() -> None:
    factors = {"lr": ("lr.low", "lr.high"), "rope": ("rope",)}
    design = designed(factors, {"lr.low": 0.1, "lr.high": -0.2, "rope": -0.05}, 3, noise=0.001)
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
    found = combine(designed(THREE, {"a": -0.2}, 3, noise=0.01))
    assert [c.name for c in found.pairs] == ["a × b", "a × c", "b × c"]
    assert [c.name for c in found.together] == ["a+b+c"]


def test_one_seed_makes_no_claim() -> None:
    found = combine(designed(THREE, {"a": -0.2}, 1, noise=0.01))
    effects = [c.effect for c in found.main_effects]
    assert all(e and e.method == "descriptive" and e.p_joint is None for e in effects)
