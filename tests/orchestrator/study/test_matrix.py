"""Designs, shared cells, fingerprints, and cells with the same configuration."""

from pathlib import Path

import pytest

from ablatrix.orchestrator.study import designs
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.trainer.rundir.errors import ConfigError
from tests.support.plans import FIVE, expand, refusals


def cells(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(run.cell for run in runs))


def test_the_seven_runs(tmp_path: Path) -> None:
    runs = expand(tmp_path, FIVE)
    assert cells(runs) == ["baseline", "swiglu", "rmsnorm", "rope", "warmup", "cosine", "all_on"]
    assert len({run.id for run in runs}) == 7
    all_on = runs[-1].config
    assert all_on.model.swiglu
    assert all_on.model.rmsnorm
    assert all_on.model.rope
    assert all_on.trainer.use_cosine
    assert all_on.trainer.warmup_steps == 10
    assert all_on.model.n_embd == 48
    assert all_on.model.vocab_size == 4096


def test_seeds_multiply_and_pair(tmp_path: Path) -> None:
    runs = expand(tmp_path, FIVE + "seeds: [3, 5]\n")
    assert [(run.cell, run.seed) for run in runs[:3]] == [("baseline", 3), ("baseline", 5), ("swiglu", 3)]
    assert {run.config.system.seed for run in runs} == {3, 5}
    assert len({run.id for run in runs}) == 14


@pytest.mark.parametrize(
    ("design", "names"),
    [
        ("[all_on]", ["all_on"]),
        ("[leave_one_out]", ["all_on", "without-a", "without-b", "without-c"]),
        ("[{factorial: 2}]", ["baseline", "a", "b", "c", "a+b", "a+c", "b+c"]),
        ("[factorial]", ["baseline", "a", "b", "c", "a+b", "a+c", "b+c", "a+b+c"]),
        ("[baseline, one_at_a_time, all_on, factorial]", ["baseline", "a", "b", "c", "all_on", "a+b", "a+c", "b+c"]),
    ],
)
def test_designs(tmp_path: Path, design: str, names: list[str]) -> None:
    features = "features: {a: {model.rope: true}, b: {model.swiglu: true}, c: {model.rmsnorm: true}}\n"
    assert cells(expand(tmp_path, f"{features}design: {design}\n")) == names


def test_named_cells_levels_and_exclude(tmp_path: Path) -> None:
    text = """\
features:
  lr: {levels: {low: {trainer.learning_rate: 1e-4}, high: {trainer.learning_rate: 1e-2}}}
  rope: {model.rope: true}
design: [baseline, one_at_a_time, factorial]
cells: {modern: [rope, lr.high]}
exclude: [[lr.low, rope]]
"""
    runs = expand(tmp_path, text)
    assert cells(runs) == ["baseline", "lr.low", "lr.high", "rope", "lr.high+rope"]
    assert runs[2].config.trainer.learning_rate == 1e-2
    assert cells(expand(tmp_path, text.replace(", factorial]", "]"))) == [
        "baseline",
        "lr.low",
        "lr.high",
        "rope",
        "modern",
    ]


def test_fingerprint_depends_on_the_whole_config_but_not_on_places(tmp_path: Path) -> None:
    first = expand(tmp_path, FIVE)[0]
    moved = first.config.model_copy(update={"system": first.config.system.model_copy(update={"work_dir": "elsewhere"})})
    assert moved.fingerprint() == first.config.fingerprint()
    longer = expand(tmp_path, FIVE, ("trainer.max_iters=999",))[0]
    assert longer.id != first.id


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ("a: {model.rope: false}", "cell a changes nothing: base and defaults already say model.rope: false"),
        ("a: {model.n_embd: 48}", "cell a changes nothing"),
        ("a: {callbacks.watch_loss: 3}", "cell a changes nothing: callbacks.watch_loss: 3 is not part of training"),
        ("a: {model.rope: true}, b: {model.rope: true}", "cell b is the same configuration as cell a"),
        ("a: {model.n_head: 5}", "cell a: model: n_embd (48) is not divisible by n_head (5)"),
        ("a: {data.block_size: 64, model.block_size: 32}", "data.block_size: 64 exceeds the model's block_size 32"),
        ("a: {model.rope: 'yes'}", "features.a.model.rope: must be true or false, found 'yes'; write true"),
        (
            "a: {trainer.max_iters: '100'}",
            "features.a.trainer.max_iters: must be a whole number (1 or more), found '100'; write 100, without quotes",
        ),
        ("a: {trainer.learning_rate: -1}", "trainer.learning_rate"),
        ("a: {model.n_embd: 45, model.n_head: 3, model.rope: true}", "rope needs an even head size"),
        ("a: {trainer.min_lr_ratio: 0.2}", "cell a: trainer.min_lr_ratio: 0.2 would be ignored by schedule constant"),
        ("a: {trainer.schedule: wsd, trainer.use_cosine: true}", "use_cosine: true contradicts trainer.schedule wsd"),
        (
            "a: {trainer.optimizer: muon2}",
            "features.a.trainer.optimizer: must be one of adamw, sgd, muon, adafactor, found 'muon2'",
        ),
        ("a: {trainer.schedule: constant}", "cell a changes nothing: base and defaults already say"),
    ],
)
def test_faulty_cells_are_refused_with_their_line(tmp_path: Path, features: str, words: str) -> None:
    problem, *_ = refusals(tmp_path, f"features: {{{features}}}\n")
    assert words in problem and problem.startswith(f"{tmp_path / 'e.yaml'}:3: ")


def test_a_fault_is_reported_once_and_with_all_others(tmp_path: Path) -> None:
    assert len(refusals(tmp_path, FIVE + "  bad: {model.n_head: 5}\n  worse: {trainer.betas: [2, 0]}\n")) == 2


def test_set_that_undoes_a_feature_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set model\.rope overrides it"):
        expand(tmp_path, FIVE, ("model.rope=true",))


def test_too_many_cells_are_refused_before_they_are_made(tmp_path: Path) -> None:
    features = ", ".join(f"f{i}: {{trainer.learning_rate: {i + 1}e-5}}" for i in range(24))
    with pytest.raises(ConfigError, match="more than 10,000 cells"):
        expand(tmp_path, f"features: {{{features}}}\ndesign: [factorial]\n")


def test_two_cells_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two different cells would be called rope"):
        expand(tmp_path, FIVE + "cells: {rope: [rope, swiglu]}\n")


def test_a_study_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="design: no runs"):
        expand(tmp_path, "design: []\n")


def test_long_factorial_names_stay_short_and_distinct(tmp_path: Path) -> None:
    keys = ("trainer.learning_rate", "trainer.weight_decay", "trainer.grad_norm_clip", "model.attn_pdrop")
    features = ", ".join(f"a_rather_long_feature_name_{i}: {{{key}: 0.5}}" for i, key in enumerate(keys))
    runs = expand(tmp_path, f"features: {{{features}}}\ndesign: [factorial]\n")
    assert len(runs) == 16
    assert len(set(cells(runs))) == 16
    assert max(len(cell) for cell in cells(runs)) <= designs.LONGEST_NAME


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (
            "a: {model.positions: alibi}, b: {model.swiglu: true}, c: {model.positions: rope}",
            "cell all_on: a sets model.positions: alibi, and c sets rope; leave the two out together with "
            "`exclude: [[a, c]]`, or make them levels of one feature",
        ),
        (
            "a: {trainer.warmup_steps: 5}, b: {model.swiglu: true}, c: {trainer.warmup_steps: 9}",
            "cell all_on: a sets trainer.warmup_steps: 5, and c sets 9; ",
        ),
        (
            "a: {model.rope: true}, b: {model.positions: alibi}",
            "cell all_on: model: rope: true contradicts positions: alibi; keep one of the two",
        ),
    ],
)
def test_features_that_undo_each_other(tmp_path: Path, features: str, words: str) -> None:
    (problem,) = refusals(tmp_path, f"features: {{{features}}}\n")
    assert words in problem and problem.startswith(f"{tmp_path / 'e.yaml'}:3: ")
    pair = "[[a, c]]" if "c:" in features else "[[a, b]]"
    left = expand(tmp_path, f"features: {{{features}}}\nexclude: {pair}\n")
    assert "all_on" not in cells(left)


def test_schedules_may_each_bring_a_learning_rate(tmp_path: Path) -> None:
    warmup = "warmup: {trainer.warmup_steps: 5, trainer.learning_rate: 1e-3}"
    features = f"features: {{{warmup}, cosine: {{trainer.use_cosine: true, trainer.learning_rate: 2e-3}}}}\n"
    both = expand(tmp_path, features)[-1]
    assert both.cell == "all_on" and both.config.trainer.learning_rate == 2e-3


def test_the_files_of_a_cell_differ_in_seed_and_folder_only(tmp_path: Path) -> None:
    """They are made from one text, which must not replace anything else that looks like a seed or a folder."""
    text = 'seeds: [3407, 34071]\nexperiment_info: {description: "a \\"seed\\": 3407, \\"work_dir\\": \\"\\""}\n'
    baseline = [run for run in expand(tmp_path, FIVE + text) if run.cell == "baseline"]
    places = [(run.trained_seed, tmp_path / 'ü "x"' / run.id) for run in baseline]
    texts = [files["config.json"] for files in baseline[0].cell_config.files(places, "baseline")]
    for run, (_, folder), found in zip(baseline, places, texts, strict=True):
        system = run.config.system.model_copy(update={"work_dir": str(folder)})
        assert found == run.config.model_copy(update={"system": system}).to_json()
