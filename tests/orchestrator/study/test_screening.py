"""Screening designs: against published tables, their aliases, and what the experiment file may ask for."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from ablatrix.orchestrator.study import screening
from ablatrix.orchestrator.study.screening import Screen, fractional, plackett_burman
from tests.support.plans import FIVE, expand, refusals

# (features, least resolution) -> cells, resolution, number of words of each length of the defining relation from 3 on.
# Cells and resolutions: Box, Hunter & Hunter 2005, table 6.22; word lengths: those of minimum aberration in the
# catalogue of Chen, Sun & Wu 1993, Int. Stat. Rev. 61, 131
PUBLISHED = {
    (3, 3): (4, 3, [1]),
    (4, 4): (8, 4, [0, 1]),
    (5, 5): (16, 5, [0, 0, 1]),
    (5, 3): (8, 3, [2, 1]),
    (6, 5): (32, 6, [0, 0, 0, 1]),
    (6, 4): (16, 4, [0, 3]),
    (6, 3): (8, 3, [4, 3]),
    (7, 5): (64, 7, [0, 0, 0, 0, 1]),
    (7, 4): (16, 4, [0, 7]),
    (7, 3): (8, 3, [7, 7, 0, 0, 1]),
    (8, 5): (64, 5, [0, 0, 2, 1]),
    (8, 4): (16, 4, [0, 14, 0, 0, 0, 1]),
    (9, 5): (128, 6, [0, 0, 0, 3]),
    (9, 4): (32, 4, [0, 6, 8, 0, 0, 1]),
    (9, 3): (16, 3, [4, 14, 8, 0, 4, 1]),
    (10, 5): (128, 5, [0, 0, 3, 3, 1]),
    (10, 4): (32, 4, [0, 10, 16, 0, 0, 5]),
    (11, 5): (128, 5, [0, 0, 6, 6, 2, 1]),
    (11, 4): (32, 4, [0, 25, 0, 27, 0, 10, 0, 1]),
}


@pytest.mark.parametrize(("asked", "published"), PUBLISHED.items())
def test_fractions_are_those_of_the_published_tables(
    asked: tuple[int, int], published: tuple[int, int, list[int]]
) -> None:
    screen = fractional(*asked)
    lengths = [word.bit_count() for word in screen.relation]
    pattern = [lengths.count(length) for length in range(3, max(lengths) + 1)]
    assert (len(screen.cells), screen.resolution, pattern) == published


def coded(screen: Screen) -> np.ndarray:
    """Return the design as a matrix of +1 (off) and -1 (on), (cells, features)."""
    return np.array([[1 - 2 * (cell >> i & 1) for i in range(screen.count)] for cell in screen.cells])


@pytest.mark.parametrize("screen", [fractional(8), fractional(11), plackett_burman(11), plackett_burman(19)])
def test_columns_are_balanced_and_orthogonal_and_the_baseline_is_a_cell(screen: Screen) -> None:
    table = coded(screen)
    assert (table.T @ table == len(table) * np.eye(screen.count)).all()
    assert (table.sum(axis=0) == 0).all()
    assert screen.cells[0] == 0


def test_plackett_burman_is_the_published_table_of_twelve() -> None:
    """Plackett & Burman 1946: the first runs, and that of minus signs."""
    on = {frozenset(i for i in range(11) if cell >> i & 1) for cell in plackett_burman(11).cells}
    rows = ("++-+++---+-", "-++-+++---+", "+-++-+++---", "-" * 11)
    assert {frozenset(i for i, sign in enumerate(row) if sign == "+") for row in rows} <= on
    assert [len(plackett_burman(k).cells) for k in (5, 11, 12, 19, 20, 23)] == [12, 12, 20, 20, 24, 24]


def test_an_alias_of_a_plackett_burman_design_is_one_third() -> None:
    table = coded(plackett_burman(11))
    share = {abs(table[:, 0] @ (table[:, i] * table[:, j])) / 12 for i, j in combinations(range(1, 11), 2)}
    assert share == {1 / 3}


def test_aliases_name_what_cannot_be_separated() -> None:
    third, fourth, fifth = (fractional(n, r) for n, r in ((5, 3), (6, 4), (5, 5)))
    for screen in (third, fourth):
        table = coded(screen)
        for feature in range(screen.count):
            columns = [table[:, i] * table[:, j] for i, j in screen.aliased_pairs(feature)]
            assert all((column == table[:, feature]).all() for column in columns)
        for chain in screen.chains:
            columns = [table[:, i] * table[:, j] for i, j in chain]
            assert all((column == columns[0]).all() for column in columns)
    assert any(third.aliased_pairs(i) for i in range(5))
    assert not any(fourth.aliased_pairs(i) for i in range(6))
    assert sum(map(len, fourth.chains)) == 15
    assert max(map(len, fourth.chains)) == 3
    assert fifth.pairs_free
    assert [len(chain) for chain in fifth.chains] == [1] * 10
    assert plackett_burman(7).chains == ()


def test_the_plan_shows_generators_and_aliases() -> None:
    lines = list(screening.describe(fractional(6, 4), ["u", "v", "w", "x", "y", "z"]))
    assert lines == [
        "fractional factorial 2^(6-2): 6 features in 16 cells, resolution IV",
        "generators: E = ABC, F = ABD (A u, B v, C w, D x, E y, F z; + is off)",
        "aliases: AB + CE + DF, AC + BE, AD + BF, AE + BC, AF + BD, CD + EF, CF + DE; main effects are aliased with no "
        "pair, of these pairs only the sum is estimated",
    ]
    (line,) = screening.describe(plackett_burman(5), list("abcde"))
    assert "blind to interactions" in line
    assert list(screening.describe(fractional(5), list("abcde")))[-1] == (
        "aliases: none between main effects and pairs"
    )
    assert "no fraction of this resolution exists" in next(screening.describe(fractional(3), list("abc")))


def cells_of(folder: Path, design: str) -> list[str]:
    return list(dict.fromkeys(run.cell for run in expand(folder, f"{FIVE}design: [{design}]\n")))


def test_a_fraction_and_a_plackett_burman_design_are_expanded(tmp_path: Path) -> None:
    half = cells_of(tmp_path, "fractional")
    assert half == cells_of(tmp_path, "{fractional: 5}")
    assert half[:3] == ["baseline", "swiglu+rmsnorm", "swiglu+rope"]
    assert len(half) == 16
    assert len(cells_of(tmp_path, "{fractional: 3}")) == 8
    assert len(cells_of(tmp_path, "plackett_burman")) == 12
    assert len(cells_of(tmp_path, "{plackett_burman: 20}")) == 20
    assert cells_of(tmp_path, "baseline, fractional, all_on") == [*half, "all_on"]


def features(count: int) -> str:
    return f"features: {{{', '.join(f'f{i}: {{trainer.learning_rate: {i + 1}e-5}}' for i in range(count))}}}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (FIVE + "design: [{fractional: 6}]\n", "{fractional: 6}: the resolution must be one of 3, 4, 5"),
        (FIVE + "design: [{fractional: five}]\n", "the resolution must be one of 3, 4, 5"),
        (FIVE + "design: [{plackett_burman: 16}]\n", "the number of cells must be one of 12, 20, 24"),
        (FIVE + "design: [{plackett_burman: 24}]\n", "5 features are too few; use {plackett_burman: 12}"),
        (FIVE + "design: [{all_on: 2}]\n", "{all_on: 2}: takes no number; write all_on"),
        (FIVE + "design: [fractional, plackett_burman]\n", "has fractional and plackett_burman; choose one of them"),
        (features(12) + "design: [fractional]\n", "12 features; at most 11; use {fractional: 4} or plackett_burman"),
        (features(17) + "design: [{fractional: 4}]\n", "17 features; at most 16; use plackett_burman"),
        (features(24) + "design: [plackett_burman]\n", "24 features; at most 23; use one_at_a_time, or fewer features"),
        (FIVE + "design: [one_at_a_time, aa]\n", "aa compares the baseline with itself; add baseline to the design"),
        (FIVE + "design: [baseline, aa]\nseeds: [1, 10001]\n", "aa trains with the seeds + 10,000"),
        (
            FIVE + "design: [baseline, aa]\ntune: {trainer.learning_rate: [1e-3, 2e-3, 4e-3]}\n",
            "aa cannot be used with tune",
        ),
        (features(4) + "design: [plackett_burman]\n", "use {fractional: 3}, {fractional: 5} or factorial"),
        (
            "features: {lr: {levels: {low: {trainer.learning_rate: 1e-4}, high: {trainer.learning_rate: 1e-2}}}}\n"
            "design: [fractional]\n",
            "fractional: takes features with one level, lr has 2; use factorial, or one of them",
        ),
        (
            FIVE + "design: [fractional]\nexclude: [[rope, cosine]]\n",
            "fractional: exclude: [rope, cosine] would remove cells that it needs",
        ),
    ],
)
def test_what_a_screening_design_cannot_be_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (problem,) = refusals(tmp_path, text)
    assert words in problem and "design: " in problem


def test_aa_is_the_baseline_with_other_seeds(tmp_path: Path) -> None:
    runs = expand(tmp_path, f"{FIVE}design: [aa, baseline, one_at_a_time]\nseeds: [1, 2]\n")
    assert [(run.cell, run.seed) for run in runs[:2]] == [("baseline", 1), ("baseline", 2)]
    assert [(run.cell, run.seed, run.config.system.seed) for run in runs[-2:]] == [("aa", 1, 10001), ("aa", 2, 10002)]
    assert len({run.id for run in runs}) == len(runs) == 14
    assert not runs[-1].features
    longer = expand(tmp_path, f"{FIVE}design: [baseline, aa]\nseeds: [1, 2, 3]\n")
    assert {run.id for run in runs[-2:]} < {run.id for run in longer}  # a study that grows keeps its runs
