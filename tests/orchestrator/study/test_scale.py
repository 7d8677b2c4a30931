"""The scale axis: which runs there are at which size, and what is wrong with a scale."""

import json
from pathlib import Path

import pytest

from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.study import matrix, value_origins
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.orchestrator.study.scale import Scale
from ablatrix.trainer.rundir.errors import ConfigError
from tests.support.plans import expand

FEATURES = "features: {swiglu: {model.swiglu: true}, cosine: {trainer.use_cosine: true}}\n"


def cells(runs: list[Run]) -> list[str]:
    return list(dict.fromkeys(run.cell for run in runs))


def test_every_cell_and_the_baseline_are_trained_at_each_size_with_every_seed(tmp_path: Path) -> None:
    runs = expand(tmp_path, FEATURES + "scale: {model.model_type: [gpt-nano, gpt-micro]}\nseeds: [3, 5]\n")
    assert cells(runs) == [
        *("baseline@gpt-nano", "swiglu@gpt-nano", "cosine@gpt-nano", "all_on@gpt-nano"),
        *("baseline@gpt-micro", "swiglu@gpt-micro", "cosine@gpt-micro", "all_on@gpt-micro"),
    ]
    assert {(run.size, run.config.model.n_embd) for run in runs} == {("gpt-nano", 48), ("gpt-micro", 128)}
    assert len({run.id for run in runs}) == len(runs) == 16
    assert runs[2].features == ("swiglu",)
    assert runs[2].overrides == {"model.swiglu": True}


def test_a_size_is_the_same_run_as_that_size_without_a_scale(tmp_path: Path) -> None:
    scaled = expand(tmp_path, FEATURES + "scale: {model.model_type: [gpt-nano, gpt-micro]}\n")
    alone = expand(tmp_path, FEATURES)
    prints = [run.config.fingerprint() for run in scaled if run.size == "gpt-nano"]
    assert prints == [run.config.fingerprint() for run in alone]


def test_several_settings_grow_together(tmp_path: Path) -> None:
    scale = "scale: {model: {n_embd: [48, 96, 96], n_layer: [3, 3, 6]}, trainer.max_iters: [100, 200, 400]}\n"
    runs = expand(tmp_path, FEATURES + scale + "design: [baseline]\n")
    assert cells(runs) == [
        f"baseline@{size}" for size in ("n_embd48-n_layer3", "n_embd96-n_layer3", "n_embd96-n_layer6")
    ]
    found = [(run.config.model.n_embd, run.config.model.n_layer, run.config.trainer.max_iters) for run in runs]
    assert found == [(48, 3, 100), (96, 3, 200), (96, 6, 400)]


def test_tokens_per_parameter_are_those_of_the_baseline(tmp_path: Path) -> None:
    text = FEATURES + "scale: {model.model_type: [gpt-nano, gpt-micro], tokens_per_parameter: 2}\n"
    runs = expand(tmp_path, text)
    for size in ("gpt-nano", "gpt-micro"):
        base, *others = [run.config for run in runs if run.size == size]
        per_step = base.trainer.batch_size * base.data.block_size
        assert abs(base.tokens / base.parameters - 2) <= 0.5 * per_step / base.parameters
        assert {other.tokens for other in others} == {base.tokens}
    loaded = load_experiment(tmp_path / "e.yaml")
    origins = value_origins.of_run(loaded, (), runs[0].config)
    assert origins["trainer.max_iters"].startswith("scale.tokens_per_parameter, ")
    assert origins["model.model_type"].startswith("scale, ")


def test_the_base_is_resolved_once_a_size(tmp_path: Path) -> None:
    """A size's steps follow from its base alone, and a resolution may count the tokens of a corpus."""
    text = FEATURES + "scale: {model.model_type: [gpt-nano, gpt-micro], tokens_per_parameter: 2}\n"
    runs, resolved = expand(tmp_path, text), []
    loaded = load_experiment(tmp_path / "e.yaml")
    matrix.runs(loaded, lambda config: resolved.append(config) or (4096, 4095))
    cells = 1 + len({run.cell for run in runs}) // 2  # and the base without features
    assert len(resolved) == 2 * (cells + 1)


def test_sizes_are_named_by_what_tells_them_apart() -> None:
    def names(**settings: object) -> list[str]:
        return [size.name for size in Scale.model_validate(settings).sizes()]

    assert names(model_type=["a", "b"]) == ["a", "b"]
    assert names(lr=[1e-3, 0.5]) == ["lr0.001", "lr0.5"]
    assert names(path=["../x/small.yaml", "../x/large.yaml"]) == ["x-small.yaml", "x-large.yaml"]
    assert names(path=["a", "a"], wide=[1, 2]) == ["a-wide1", "a-wide2"]
    assert names(path=["/a", "a/"]) == ["size1", "size2"]


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ("{}", "scale: no setting given; write `scale: {model.model_type: [gpt-nano,"),
        ("{model.n_embd: [48]}", "scale: only one size; give at least two, or three to see a trend"),
        (
            "{model.n_embd: [48, 96], model.n_layer: [3, 3, 6]}",
            "scale: every setting needs one value per size, but model.n_embd has 2, model.n_layer has 3",
        ),
        ("{model.n_embd: 48}", "scale.model.n_embd: must be a list with one value per size, found 48"),
        ("{model.n_embed: [48, 96]}", "scale.model.n_embed: unknown key (did you mean model.n_embd?)"),
        ("{system.seed: [1, 2]}", "scale.system.seed: set per run; give `seeds:` at the top level"),
        ("{model.n_embd: [48, 48]}", "scale: two sizes have the same settings; give each size once"),
        ("{model.n_embd: [96, 48]}", "e.yaml:4: scale: n_embd48 trains with"),
        ("{model.n_embd: [48, 100]}", "e.yaml:4: size n_embd100: model: n_embd (100) is not divisible by n_head (3)"),
        ("{model.swiglu: [false, true]}", "features.swiglu.model.swiglu: scale sets model.swiglu at each size, so"),
        ("{model.n_embd: [48, 96], predict: 20}", "scale.predict: must be 10 or less, found 20"),
        ("{model.n_embd: [48, 96], tokens_per_parameter: 0}", "tokens_per_parameter: must be more than 0"),
        (
            "{model.n_embd: [48, 96]}\ntune: {trainer.learning_rate: [1e-3, 2e-3, 4e-3]}",
            "scale: incompatible with tune; tune at one size, and scale what it confirms",
        ),
        ("{model.n_embd: [48, 96]}\nseeds: {start: 3, up_to: 8}", "seeds: planned looks and `scale` cannot be"),
        (
            "{trainer.max_iters: [100, 200], tokens_per_parameter: 1}",
            "scale.tokens_per_parameter: conflicts with scale.trainer.max_iters",
        ),
        (
            "[gpt-nano, gpt-micro]",
            "scale: must be a mapping (`key: value`), found a list of 2; for example `scale: {model",
        ),
    ],
)
def test_problems_of_a_scale_have_a_place_and_a_way_out(tmp_path: Path, scale: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        expand(tmp_path, f"features: {{swiglu: {{model.swiglu: true}}}}\nscale: {scale}\n")
    assert len(error.value.problems) == 1, error.value.problems
    assert words in error.value.problems[0]
    assert error.value.problems[0].startswith(str(tmp_path / "e.yaml:"))


def test_what_wins_over_every_size_is_a_problem(tmp_path: Path) -> None:
    text = "scale: {model.n_layer: [3, 4]}\n"
    with pytest.raises(ConfigError, match=r"--set model.n_layer: scale sets it at each size; change the sizes in the"):
        expand(tmp_path, FEATURES + text, ("model.n_layer=2",))
    fixed = "base: {model: {n_layer: 1, n_head: 1, n_embd: 8}}\nscale: {model.model_type: [gpt-nano, gpt-micro]}\n"
    path = tmp_path / "fixed.yaml"
    path.write_text("name: s\nextends: e.yaml\n" + FEATURES + fixed)
    (tmp_path / "e.yaml").write_text("base: {data.file_path: x.jsonl}\n")
    with pytest.raises(ConfigError, match="gpt-micro and gpt-nano are the same configuration; take what fixes"):
        matrix.runs(load_experiment(path), lambda config: (4096, 4095))


def test_a_command_is_scaled_by_its_own_settings(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = """\
name: c
command: python train.py --width {width} --seed {seed} --act {act}
metrics: {csv: log.csv}
base: {act: gelu}
features: {relu: {act: relu}}
scale: {width: [64, 128]}
"""
    path.write_text(text)
    runs = matrix.runs(load_experiment(path), lambda config: (1, None))
    assert cells(runs) == ["baseline@width64", "relu@width64", "baseline@width128", "relu@width128"]
    path.write_text(text.replace("[64, 128]", "[64, 128], tokens_per_parameter: 20"))
    with pytest.raises(ConfigError, match="the parameters of a command's model are not known; scale its number of"):
        load_experiment(path)


def test_the_size_of_each_run_is_recorded(tmp_path: Path) -> None:
    runs = expand(tmp_path, FEATURES + "scale: {model.model_type: [gpt-nano, gpt-micro], predict: 4}\n")
    scale = load_experiment(tmp_path / "e.yaml").experiment.scale
    assert scale is not None
    study = study_dir.create_study(
        tmp_path / "s", "s", tmp_path / "e.yaml", {}, runs, fields={"scale": scale.as_record()}
    )
    assert [run.size for run in study.runs] == [run.size for run in runs]
    record = json.loads((tmp_path / "s" / study_dir.STUDY).read_text())
    assert record["scale"] == {"sizes": ["gpt-nano", "gpt-micro"], "predict": 4.0}
