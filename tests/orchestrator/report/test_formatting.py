"""Numbers and names as text."""

from __future__ import annotations

import pytest

from ablatrix.orchestrator.report import forest_plot, palette
from ablatrix.orchestrator.report.formatting import decimals_for, shorten, span_text, usual_decimals

LONG = [f"a_very_long_name_that_someone_wrote_{i}_with_rotary_positions" for i in range(12)]
TWICE = [f"{'x' * 30}{a}{'y' * 30}{b}{'z' * 20}" for a in "ab" for b in "12"]


@pytest.mark.parametrize("most", [14, 25, 40])
def test_long_names_fit_and_no_two_look_alike(most: int) -> None:
    found = shorten([*LONG, "baseline"], most)
    assert list(found) == [*LONG, "baseline"]
    assert len(set(found.values())) == len(found)
    assert max(map(len, found.values())) <= most


def test_names_that_differ_in_two_places_stay_whole() -> None:
    found = shorten([*TWICE, LONG[0]], 25)
    assert {name: found[name] for name in TWICE} == {name: name for name in TWICE}
    assert len(found[LONG[0]]) == 25


def test_a_name_is_cut_in_its_middle_or_where_others_differ() -> None:
    assert shorten(["baseline", LONG[0]], 20) == {"baseline": "baseline", LONG[0]: "a_very_lo…_positions"}
    assert list(shorten(LONG[:2], 25).values()) == ["a_very_l…rote_0_with_rot…", "a_very_l…rote_1_with_rot…"]


def test_parts_of_a_combination_are_shortened_alike_in_all_names() -> None:
    a, b, c = LONG[:3]
    found = shorten([a, f"{a}+{b}", f"{a} × {c}", f"{a}+{b}+{c}", "baseline"], 32)
    assert len(set(found.values())) == 5
    parts = found[f"{a}+{b}+{c}"].split("+")
    assert found[f"{a}+{b}"] == "+".join(parts[:2])
    assert found[f"{a} × {c}"] == f"{parts[0]} × {parts[2]}"
    assert all(len(part) <= 9 for part in parts)


def test_a_combination_of_many_parts_is_shortened_as_a_whole() -> None:
    every, rest = "+".join(LONG[:7]), "+".join(LONG[1:8])
    found = shorten([every, rest, f"{LONG[0]}+{LONG[1]}"], 32)
    assert len(set(found.values())) == 3
    assert max(map(len, found.values())) <= 32


def test_small_values_have_the_decimals_that_show_them() -> None:
    assert [decimals_for(u, size=3.2) for u in (0.02, 0.0012, 1e-15)] == [3, 4, 9]
    assert decimals_for(2e-11, size=3e-9) == 12
    assert [usual_decimals(size) for size in (40.0, 3.2, 0.5, 2e-5)] == [4, 4, 4, 8]
    assert span_text(-2e-11, 3e-13, 12) == "−0.000000000020 to +0.0000000000003"


@pytest.mark.parametrize(("width", "name"), [(3.5, "rope"), (7.2, "a_very_long_name_which_makes_a_second_line")])
def test_a_title_has_no_short_last_line(width: float, name: str) -> None:
    text = f"{name} ends lowest: held-out NLL 3.089, the baseline's 3.184"
    lines = forest_plot.wrap(text, width)
    assert " ".join(lines) == text
    assert len(lines) == 2
    assert len(lines[1]) > 0.6 * len(lines[0])
    assert forest_plot.wrap("", width) == [""]


@pytest.mark.parametrize("limits", [(-0.087, 0.031), (0.0, 1.0), (-0.1, 0.004), (2.9, 3.9)])
def test_an_axis_has_three_ticks_at_least(limits: tuple[float, float]) -> None:
    found = palette.ticks(limits, 5)
    assert 3 <= len(found) <= 8
    assert all(limits[0] <= tick <= limits[1] for tick in found)


@pytest.mark.parametrize("scale", [1e-11, 1e-5, 1.0, 1000.0])
def test_the_ticks_of_an_axis_have_labels_that_tell_them_apart(scale: float) -> None:
    found = palette.label_ticks((-5.5 * scale, 2.3 * scale))
    assert [float(label.replace("−", "-")) for _, label in found] == pytest.approx(
        [tick for tick, _ in found], rel=1e-9
    )


@pytest.mark.parametrize(("low", "high"), [(2e11, 2e13), (2.4e12, 7e12), (1e15, 1e21), (1.1e15, 1.4e15)])
def test_a_logarithmic_axis_has_three_round_ticks_at_least(low: float, high: float) -> None:
    found = palette.log_ticks(low, high)
    assert 3 <= len(found) <= 7
    assert all(low <= tick <= high for tick in found)
