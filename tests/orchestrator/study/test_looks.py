"""Planned looks: what the file may say, what is chosen by default, and what `plan` shows of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.looks import ALPHA, Looks, error_rates, spread
from ablatrix.trainer.rundir.errors import ConfigError
from tests.support.plans import FIVE, expand


def read(folder: Path, seeds: str, more: str = "") -> Looks | None:
    path = folder / "e.yaml"
    path.write_text(f"name: s\nbase: {{data.file_path: x.jsonl}}\nseeds: {seeds}\n{more}")
    return load_experiment(path).experiment.looks


@pytest.mark.parametrize(
    ("seeds", "looks"),
    [
        ("{start: 3, up_to: 8}", Looks((3, 5, 8), (0.01, 0.015, 0.025), 0.1)),
        ("{start: 3, up_to: 12}", Looks((3, 5, 8, 12), (0.005, 0.01, 0.015, 0.02), 0.1)),
        ("{looks: [4, 6]}", Looks((4, 6), (0.016666, 0.033333), 0.1)),
        ("{looks: [2, 9], alpha: [0.001, 0.02]}", Looks((2, 9), (0.001, 0.02), 0.1)),
        ("{start: 3, up_to: 8, alpha: [0.01, 0.01, 0.03]}", Looks((3, 5, 8), (0.01, 0.01, 0.03), 0.1)),
        ("{looks: [4, 6], futility: 0}", Looks((4, 6), (0.016666, 0.033333))),
        ("3", None),
    ],
)
def test_looks_of_a_file(tmp_path: Path, seeds: str, looks: Looks | None) -> None:
    assert read(tmp_path, seeds) == looks


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        ("{start: 3}", "give either start and up_to"),
        ("{}", "give either start and up_to"),
        ("{start: 3, up_to: 8, looks: [3, 8]}", "give either start and up_to"),
        ("{start: 8, up_to: 3}", "must increase from at least 2, got 8, 3"),
        ("{looks: [1, 3]}", "must increase from at least 2, got 1, 3"),
        ("{looks: [3, 3]}", "must increase"),
        ("{looks: []}", "must increase"),
        ("{looks: [3, 5], alpha: [0.05]}", "there are 2 looks, but 1 error rates"),
        ("{looks: [3, 5], alpha: [0.03, 0.03]}", "sum to at most 0.05, got 0.06"),
        ("{looks: [3, 5], alpha: [0.05, 0]}", "error rates are positive"),
        ("{start: 3, up_to: 10001}", "10000 or less"),
        ("{start: 3, up_to: 8, futility: 0.5}", "futility: must be less than 0.5"),
        ("{start: three, up_to: 8}", "seeds.start: must be a whole number"),
        ("{begin: 3}", "seeds.begin: unknown key; keys: start, up_to, looks, alpha, futility"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_its_line(tmp_path: Path, seeds: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, seeds)
    [line] = caught.value.problems
    assert "e.yaml:3: seeds" in line and words in line


@pytest.mark.parametrize("design", ["factorial", "{factorial: 2}"])
def test_a_factorial_design_has_no_looks(tmp_path: Path, design: str) -> None:
    with pytest.raises(ConfigError, match="judged as a whole"):
        read(tmp_path, "{start: 3, up_to: 8}", f"{FIVE}design: [baseline, {design}]\n")


@pytest.mark.parametrize(("start", "up_to"), list(itertools.combinations((2, 3, 4, 5, 6, 8, 13, 40, 300), 2)))
def test_looks_between_two_numbers_increase_and_share_the_error_rate(start: int, up_to: int) -> None:
    seeds = spread(start, up_to)
    assert (seeds[0], seeds[-1]) == (start, up_to)
    assert all(a < b for a, b in itertools.pairwise(seeds))
    assert 0.0499 < sum(error_rates(len(seeds))) <= ALPHA + 1e-9


def test_all_seeds_are_planned_and_each_belongs_to_a_look(tmp_path: Path) -> None:
    runs = expand(tmp_path, FIVE + "seeds: {start: 3, up_to: 8}\n")
    assert sorted({run.seed for run in runs}) == list(range(1, 9))
    assert [Looks((3, 5, 8), (0.01, 0.015, 0.025)).of_seed(n) for n in range(1, 9)] == [0, 0, 0, 1, 1, 2, 2, 2]
