"""The effect of all features divided among them: against the definition, against pairs, and on the page."""

from __future__ import annotations

from itertools import combinations, pairwise, permutations
from pathlib import Path

import numpy as np
import pytest

from ablatrix.orchestrator.report import document, drawing, figures, waterfall, waterfall_plot
from ablatrix.orchestrator.report.attribution import Attribution, Method, attribute
from ablatrix.orchestrator.report.figure_data import Figure, Step, Waterfall
from ablatrix.orchestrator.report.record import record_of
from ablatrix.orchestrator.study.screening import fractional
from tests.support.designs import Sets, mean_of, plant, screened
from tests.support.reports import analyse_plan
from tests.support.studies import FEATURES, Plan

ABC = ("a", "b", "c")


def subsets(features: tuple[str, ...]) -> Sets:
    return [frozenset(c) for size in range(len(features) + 1) for c in combinations(features, size)]


def shares(found: Attribution | None) -> dict[str, float]:
    assert found is not None
    return {share.name: mean_of(share) for share in found.shares}


def test_exact_values_are_the_means_over_all_orders() -> None:
    truth = {frozenset("a"): -0.1, frozenset("b"): 0.03, frozenset("ab"): 0.04, frozenset("abc"): -0.06}
    design = plant(subsets(ABC), truth, noise=0.02)
    found = attribute(design)
    assert found is not None and found.method is Method.EXACT
    value = {on: float(np.mean(list(design.values[name].values()))) for on, name in design.sets.items()}
    orders = list(permutations(ABC))
    for feature in ABC:
        before = [frozenset(order[: order.index(feature)]) for order in orders]
        wanted = np.mean([value[s | {feature}] - value[s] for s in before])
        assert shares(found)[feature] == pytest.approx(wanted, abs=1e-12)
    assert sum(shares(found).values()) == pytest.approx(mean_of(found.whole), abs=1e-12)
    assert mean_of(found.whole) == pytest.approx(value[frozenset(ABC)] - value[frozenset()], abs=1e-12)
    assert found.rest is None


def test_each_seed_has_its_own_values_which_sum_to_its_own_whole() -> None:
    design = plant(subsets(ABC), {frozenset("a"): -0.1}, seeds=4, noise=0.02)
    found = attribute(design)
    assert found is not None and found.whole.effect is not None
    each = np.array([share.effect.values for share in found.shares if share.effect])
    assert each.shape == (3, 4)
    assert each.sum(axis=0) == pytest.approx(found.whole.effect.values, abs=1e-12)
    for share in found.shares:
        assert share.effect is not None and share.effect.joint_low is not None and share.effect.low is not None
        assert share.effect.joint_low < share.effect.low < share.effect.mean


TRUTH = {frozenset("a"): -0.1, frozenset("b"): 0.05, frozenset("ab"): 0.04, frozenset("ce"): -0.02}


def test_a_fraction_of_resolution_five_gives_an_effect_and_half_of_its_pairs() -> None:
    # phi_i = b_i + 1/2 sum_j b_ij in on/off coding
    found = attribute(screened(fractional(5), TRUTH))
    assert found is not None and found.method is Method.PAIRS
    assert shares(found) == pytest.approx({"a": -0.08, "b": 0.07, "c": -0.01, "d": 0.0, "e": -0.01}, abs=1e-12)
    full = attribute(plant(subsets(tuple("abcde")), TRUTH))
    assert shares(full) == pytest.approx(shares(found), abs=1e-12)
    assert mean_of(found.whole) == pytest.approx(sum(TRUTH.values()), abs=1e-12)


def ends(features: str) -> Sets:
    every = frozenset(features)
    return [frozenset(), *(frozenset(f) for f in features), *(every - {f} for f in features), every]


def test_the_mean_of_first_in_and_last_in_is_exact_for_pairs() -> None:
    found = attribute(plant(ends("abcde"), TRUTH))
    assert found is not None and found.method is Method.ENDS
    assert shares(found) == pytest.approx(shares(attribute(plant(subsets(tuple("abcde")), TRUTH))), abs=1e-12)
    first, last = ({c.name: mean_of(c) for c in each} for each in (found.first_in, found.last_in))
    assert (first["a"], last["a"]) == pytest.approx((-0.1, -0.06), abs=1e-12)
    assert found.rest is not None and mean_of(found.rest) == pytest.approx(0.0, abs=1e-12)


def test_what_first_in_and_last_in_leave_is_that_of_three_features_together() -> None:
    found = attribute(plant(ends("abcd"), {frozenset("a"): -0.1, frozenset("abc"): 0.06}))
    assert found is not None
    assert shares(found) == pytest.approx({"a": -0.07, "b": 0.03, "c": 0.03, "d": 0.0}, abs=1e-12)
    assert found.rest is not None and mean_of(found.rest) == pytest.approx(-0.03, abs=1e-12)
    assert sum(shares(found).values()) + mean_of(found.rest) == pytest.approx(mean_of(found.whole), abs=1e-12)


def test_nothing_is_attributed_without_the_cells_for_it() -> None:
    assert attribute(plant([frozenset(), *(frozenset(f) for f in "abcd"), frozenset("abcd")], {})) is None
    assert attribute(plant([frozenset(), frozenset("a")], {})) is None
    design = plant(ends("abcd"), {})
    design.values["a+b+c"].clear()  # type: ignore[attr-defined]
    assert attribute(design) is None


def test_the_report_shows_the_waterfall_its_table_a_sentence_and_the_record(tmp_path: Path) -> None:
    cells = {"+".join(on) or "baseline": on for n in range(4) for on in combinations(("swiglu", "rmsnorm", "rope"), n)}
    three = {name: FEATURES[name] for name in ("swiglu", "rmsnorm", "rope")}
    plan = Plan(features=three, cells=cells, effects={"rope": -0.2, "swiglu": 0.05}, noise=0.004)
    analysis = analyse_plan(tmp_path, plan)
    figure, table = waterfall.figure(analysis), waterfall.table(analysis)
    assert figure is not None and figure.waterfall is not None and table is not None
    steps = figure.waterfall.steps
    assert [step.label for step in steps] == ["rope", "rmsnorm", "swiglu", "all on"]
    assert [step.helps for step in steps] == [True, steps[1].end < steps[1].start, False, True]
    assert all(lower.start == upper.end for upper, lower in pairwise(steps[:-1]))
    assert steps[-2].end == pytest.approx(steps[-1].end, abs=1e-12)
    assert [row.cells[0] for row in table.rows] == [step.label for step in steps]
    assert waterfall.sentence(analysis).startswith("Shares of all on (−0.1")
    record = record_of(analysis)["attribution"]
    assert record["method"] == "exact"
    assert sum(share["effect"]["mean"] for share in record["shares"]) == pytest.approx(record["whole"]["mean"])
    sections = {section.id: section for section in document.compose(analysis, figures.build_figures(analysis, ""), [])}
    assert sections["attribution"].blocks == [figure, table]
    with drawing.settings():
        (axes,) = drawing.layout(figure).axes
        assert [tick.get_text() for tick in axes.get_yticklabels()] == [step.label for step in steps]


def test_names_too_alike_to_be_shortened_leave_room_for_the_bars() -> None:
    names = [f"{'x' * 60}{a}{'y' * 60}{b}{'z' * 20}" for a in "ab" for b in "12"]
    steps = tuple(Step(name, 0.0, -0.1, "−0.1000", helps=True) for name in names)
    bars = Waterfall(steps, "Δ nats", (-0.1, 0.0), ("lower", "higher"))
    with drawing.settings():
        (axes,) = drawing.layout(Figure("attribution", "Shares", "", waterfall=bars), 3.5).axes
        assert axes.get_position().width == pytest.approx(waterfall_plot.NARROWEST)


def test_first_in_and_last_in_are_columns_of_the_table(tmp_path: Path) -> None:
    three = ["swiglu", "rmsnorm", "rope", "warmup"]
    cells = {"baseline": [], **{f: [f] for f in three}, "all_on": three}
    cells |= {f"without-{f}": [g for g in three if g != f] for f in three}
    plan = Plan(features={f: FEATURES[f] for f in three}, cells=cells, effects={"rope": -0.2})
    analysis = analyse_plan(tmp_path, plan)
    table = waterfall.table(analysis)
    assert table is not None
    assert list(table.head) == ["feature", "share", "95% interval", "first in", "last in"]
    assert [row.cells[0] for row in table.rows][-2:] == ["three or more", "all on"]
    assert record_of(analysis)["attribution"]["first_in"][0]["name"] == "swiglu"


@pytest.mark.parametrize("width", [drawing.WIDE, drawing.NARROW])
def test_pictures_of_a_factorial_with_long_names_have_room_for_their_bars(tmp_path: Path, width: float) -> None:
    features = {f"a_very_long_feature_name_that_someone_wrote_{i}": {"trainer.warmup_steps": 20 + i} for i in range(3)}
    cells = {"+".join(on) or "baseline": list(on) for size in range(4) for on in combinations(features, size)}
    analysis = analyse_plan(tmp_path, Plan(features=features, cells=cells, rows=8))
    drawn = {figure.name: figure for figure in figures.build_figures(analysis, "")}
    for name in ("effects", "interactions", "attribution"):
        with drawing.settings():
            canvas = drawing.layout(drawn[name], width)
            canvas.draw_without_rendering()
            texts = [text.get_window_extent() for axes in canvas.axes for text in axes.get_yticklabels()]
            texts += [text.get_window_extent() for axes in canvas.axes for text in axes.texts]
        assert min(axes.get_position().width for axes in canvas.axes) * width > 0.9
        assert min(box.x0 for box in texts) >= 0
        assert max(box.x1 for box in texts) <= width * drawing.DPI + 1
