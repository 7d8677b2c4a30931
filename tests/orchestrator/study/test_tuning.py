"""Tuned arms: the runs of each stage, their names and seeds, and what is wrong with a grid."""

from pathlib import Path

import pytest

from ablatrix.orchestrator.study.tuning import Tuning, arm_of, parse
from ablatrix.trainer.rundir.errors import ConfigError
from tests.support.plans import expand

COSINE = "features: {cosine: {trainer.use_cosine: true}}\ndesign: [baseline, one_at_a_time]\n"
RATES = "tune: {trainer.learning_rate: [4e-3, 1e-3, 2e-3]}\n"


def test_every_cell_is_tuned_and_may_be_confirmed_at_each_candidate(tmp_path: Path) -> None:
    runs = expand(tmp_path, f"{COSINE}{RATES}seeds: 3\n")
    tune = parse({"trainer.learning_rate": [4e-3, 1e-3, 2e-3]})
    assert tune.candidates == (1e-3, 1.2e-3, 1.4e-3, 1.7e-3, 2e-3, 2.4e-3, 2.8e-3, 3.4e-3, 4e-3)
    tuning = [run for run in runs if tune.is_tuning(run)]
    assert len(tuning) == 2 * 3 * 2
    assert {run.seed for run in tuning} == {1001, 1002}
    assert {(arm_of(run.cell), tune.value_of(run)) for run in runs if run.seed == 1} == {
        (arm, value) for arm in ("baseline", "cosine") for value in tune.candidates
    }
    for run in runs:
        assert run.config.trainer.learning_rate == tune.value_of(run)
        assert run.overrides["trainer.learning_rate"] == tune.value_of(run)
        assert run.config.trainer.use_cosine == (arm_of(run.cell) == "cosine")
    assert len({run.id for run in runs}) == len(runs)


def test_more_seeds_keep_the_tuning_runs(tmp_path: Path) -> None:
    few, many = (expand(tmp_path, f"{COSINE}{RATES}seeds: {n}\n") for n in (3, 8))
    assert {run.id for run in few} < {run.id for run in many}


def test_the_most_and_the_compared_runs(tmp_path: Path) -> None:
    runs = expand(tmp_path, f"{COSINE}{RATES}seeds: 3\n")
    tune = parse({"trainer.learning_rate": [1e-3, 2e-3, 4e-3]})
    assert len(tune.largest(runs)) == 2 * 3 * 2 + (2 * 2 - 1) * 3
    assert len(tune.compared(runs)) == 2 * 3


def test_candidates_of_whole_numbers_are_whole() -> None:
    assert parse({"lr": [1, 2, 8]}).candidates == (1, 2, 3, 4, 5, 6, 7, 8)


def test_nested_keys_and_listed_seeds() -> None:
    assert parse({"trainer": {"learning_rate": [1, 2, 4]}, "seeds": [7, 8]}) == Tuning(
        "trainer.learning_rate", (1, 2, 4), (7, 8)
    )


@pytest.mark.parametrize(
    ("tune", "problem"),
    [
        ("{trainer.learning_rate: [1e-3]}", "has 1 value; a parabola needs 3 to 9"),
        ("{trainer.learning_rate: [1e-3, 2e-3]}", "has 2 values"),
        ("{trainer.learning_rate: [0, 1e-3, 2e-3]}", "every value must be above 0"),
        ("{trainer.learning_rate: [1e-3, 1e-3, 2e-3]}", "has a value twice"),
        ("{trainer.learning_rate: [1e-3, 2e-3, high]}", "needs a list of numbers"),
        ("{trainer.learning_rate: 1e-3}", "needs a list of numbers"),
        ("{trainer.learning_rate: [1, 2, 3], trainer.beta1: [1, 2, 3]}", "give one setting with its values"),
        ("{seeds: 3}", "give one setting with its values"),
        ("3", "give one setting with its values"),
        ("{trainer.learning_rate: [1, 2, 3], seeds: 0}", "seeds is the number of runs at each value"),
        ("{trainer.learning_rate: [1, 2, 3], seeds: [2]}", "seed 2 is in `seeds` too"),
        (
            "{trainer.learnin_rate: [1, 2, 3]}",
            "no setting 'trainer.learnin_rate' (did you mean trainer.learning_rate?)",
        ),
        ("{trainer.use_cosine: [1, 2, 3]}", "cosine sets trainer.use_cosine, which `tune` varies in every cell"),
        ("{trainer.grad_norm_clip: [1, 2, 3], x: 1}", "give one setting"),
        ("{model.n_head: [2, 3, 5]}", "tune: model: n_embd (48) is not divisible by n_head (5)"),
    ],
)
def test_problems_are_one_sentence_with_their_line(tmp_path: Path, tune: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        expand(tmp_path, f"{COSINE}tune: {tune}\nseeds: 3\n")
    (found, *_) = error.value.problems
    assert problem in found
    assert "e.yaml:" in found


def test_set_cannot_fix_what_is_tuned(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set trainer.learning_rate gives every run one value"):
        expand(tmp_path, f"{COSINE}{RATES}", ("trainer.learning_rate=1e-3",))
