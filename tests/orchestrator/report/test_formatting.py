"""Numbers and names as text."""

from __future__ import annotations

import pytest

from ablatrix.orchestrator.report.formatting import shorten

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
