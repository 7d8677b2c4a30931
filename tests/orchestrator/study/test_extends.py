"""Several configs in one file, files found by name, conditionals by choosing a base, and who set which value."""

import json
from pathlib import Path

import pytest

from ablatrix.orchestrator.study import matrix, value_origins
from ablatrix.orchestrator.study.experiment import Loaded
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.trainer.rundir.errors import AblatrixError
from tests.support.workspace import Workspace

SIZES = """\
name: sizes
vars: {iters: 40}
base:
  data.file_path: x.jsonl
  model.model_type: gpt-nano
  trainer.max_iters: ${iters}
features:
  rope: {model.rope: true}
configs:
  small: {base: {model.n_layer: 1}, seeds: [7]}
  large:
    extends: small
    base: {model: {model_type: gpt-mini}}
    vars: {iters: 80}
  own-name: {name: mine}
"""


@pytest.fixture(autouse=True)
def no_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ABLATRIX_PATH", raising=False)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def load(path: object, *sets: str) -> Loaded:
    return load_experiment(Path(str(path)), sets)


def fault(path: object, *sets: str) -> str:
    with pytest.raises(AblatrixError) as caught:
        load(path, *sets)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_config_stands_on_the_top_of_its_file_and_on_what_it_extends(tmp_path: Path) -> None:
    path = write(tmp_path, "sizes.yaml", SIZES)
    large = load(f"{path}#large").experiment
    assert large.base == {
        "data.file_path": "x.jsonl",
        "model.model_type": "gpt-mini",
        "model.n_layer": 1,
        "trainer.max_iters": 80,
    }
    assert large.seed_list == [7]
    assert large.features == {"rope": {"model.rope": True}}
    top = load(path).experiment
    assert (top.base["model.model_type"], top.base["trainer.max_iters"], top.seed_list) == ("gpt-nano", 40, [1])


def test_two_configs_are_two_studies(tmp_path: Path) -> None:
    path = write(tmp_path, "sizes.yaml", SIZES)
    names = [load(f"{path}#{config}").experiment.name for config in ("small", "large", "own-name")]
    assert names == ["sizes-small", "sizes-large", "mine"]
    nameless = write(tmp_path, "nameless.yaml", SIZES.partition("\n")[2])
    assert load(f"{nameless}#large").experiment.name == "large"


def test_another_file_extends_a_config_and_keeps_its_own_name(tmp_path: Path) -> None:
    write(tmp_path, "sizes.yaml", SIZES)
    path = write(tmp_path, "e.yaml", "name: e\nextends: sizes.yaml#large\nbase: {trainer.batch_size: 3}\n")
    loaded = load(path)
    assert loaded.experiment.name == "e"
    assert loaded.experiment.base["trainer.max_iters"] == 80
    assert loaded.experiment.base["trainer.batch_size"] == 3
    assert loaded.at("base", "model.model_type").endswith("sizes.yaml:13: ")
    assert loaded.at("base", "model.n_layer").endswith("sizes.yaml:10: ")


def test_the_file_order_is_top_then_extended_then_config(tmp_path: Path) -> None:
    write(tmp_path, "other.yaml", "base: {trainer.batch_size: 2, trainer.grad_accum: 2}\n")
    text = (
        "name: s\nbase: {trainer.batch_size: 1, data.block_size: 8}\n"
        "configs: {a: {extends: [other.yaml], base: {trainer.grad_accum: 1}}}\n"
    )
    base = load(f"{write(tmp_path, 's.yaml', text)}#a").experiment.base
    assert base == {"trainer.batch_size": 2, "data.block_size": 8, "trainer.grad_accum": 1}


def test_an_inherited_feature_can_be_taken_away(tmp_path: Path) -> None:
    write(tmp_path, "sizes.yaml", SIZES)
    features = "features: {rope: , swiglu: {model.swiglu: true}}"
    path = write(tmp_path, "e.yaml", f"name: e\nextends: sizes.yaml\n{features}\n")
    assert load(path).experiment.features == {"swiglu": {"model.swiglu": True}}
    alone = write(tmp_path, "f.yaml", f"name: e\n{features}\n")
    assert "features.rope: must be a mapping" in fault(alone), "what is not inherited has been forgotten"


def test_what_is_extended_cannot_be_set_but_chosen(tmp_path: Path) -> None:
    path = write(tmp_path, "sizes.yaml", SIZES)
    for key in ("extends", "configs"):
        assert f"--set {key}: not allowed here; choose a config with FILE#NAME" in fault(path, f"{key}=x")


@pytest.mark.parametrize(
    ("text", "config", "words"),
    [
        (SIZES, "larg", "sizes.yaml: no config 'larg' (did you mean large?); configs: small, large, own-name"),
        ("name: a\n", "large", "no config 'large'; the file has no `configs:`"),
        (SIZES.partition("\n")[2], None, "sizes.yaml: several configs, each a study of its own; choose one: "),
        ("configs: {a: {model.rope: true}}\n", "a", "variants to compare within one study are `features`"),
        ("configs: {a: {model: {rope: true}}}\n", None, "sizes.yaml:1: configs.a: a config is a study of its own"),
        ("configs: {a: {extends: b}, b: {extends: a}}\n", "a", "sizes.yaml#a -> sizes.yaml#b -> sizes.yaml#a"),
        ("configs: {a: {extends: a}}\n", "a", "extends itself: sizes.yaml#a -> sizes.yaml#a"),
        ("extends: a\nconfigs: {a: {}}\n", "a", "extends itself"),
        ("configs: {a: {extends: bb}, b: {}}\n", "a", "sizes.yaml:1: extends: "),
        ("configs: {a: {extends: smal}, small: {}}\n", "a", "no config of this file (did you mean small?)"),
        ("configs: {a: 3}\n", "a", "sizes.yaml:1: configs.a: must be a mapping"),
        ("configs: [a]\n", "a", "sizes.yaml:1: configs: must be a mapping of names to settings"),
        ("configs: {a: {configs: {b: {}}}}\n", "a", "configs.a: configs cannot be nested"),
        ("configs: {a b: {}}\n", "a b", "sizes.yaml:1: name: names have up to 80 letters"),
        ("name: x\nconfigs: {a: {bas: 1}}\n", "a", "sizes.yaml:2: bas: unknown key (did you mean base?)"),
        ("name: x\nconfig: {}\n", None, "config: unknown key (did you mean configs?)"),
    ],
)
def test_faults_of_configs(tmp_path: Path, text: str, config: str | None, words: str) -> None:
    path = write(tmp_path, "sizes.yaml", text)
    assert words in fault(f"{path}#{config}" if config else path)


def test_files_are_found_by_name_on_the_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "lab", "sizes.yaml", SIZES)
    write(tmp_path / "lab", "site.yml", "slurm: {partition: lab}\n")
    monkeypatch.setenv("ABLATRIX_PATH", f"{tmp_path / 'nowhere'}:{tmp_path / 'lab'}")
    assert load("sizes#large").experiment.name == "sizes-large"
    assert load("sizes.yaml").source.path == tmp_path / "lab" / "sizes.yaml"
    path = write(tmp_path, "e.yaml", "name: e\nextends: [site, sizes]\n")
    assert load(path).experiment.slurm.partition == "lab"
    mine = write(tmp_path, "site.yml", "slurm: {partition: mine}\n")
    assert load(mine.with_name("e.yaml"), "name=x").experiment.slurm.partition == "lab", "site is no name beside it"
    near = write(tmp_path, "f.yaml", "name: e\nextends: site.yml\n")
    assert load(near).experiment.slurm.partition == "mine", "the folder of the file comes first"
    missing = fault("size")
    assert "size: no such experiment file" in missing
    assert (
        f"on ABLATRIX_PATH, {tmp_path / 'nowhere'}: no such folder; {tmp_path / 'lab'} has: site.yml, sizes.yaml"
        in missing
    )
    assert ": no such folder" in fault(write(tmp_path, "g.yaml", "name: e\nextends: sise\n"))


def test_the_suffix_of_a_file_may_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, "sizes.yaml", SIZES)
    assert load(path.with_suffix("")).source.path == path
    assert load(f"{path.with_suffix('')}#large").experiment.name == "sizes-large"


def test_a_base_is_chosen_by_environment_variable_or_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "laptop.yaml", "slurm: {cpus_per_task: 1}\n")
    write(tmp_path, "cluster.yaml", "slurm: {cpus_per_task: 16}\n")
    by_environment = write(tmp_path, "a.yaml", "name: a\nextends: '${env:SITE,laptop}.yaml'\n")
    by_variable = write(tmp_path, "b.yaml", "name: b\nvars: {site: laptop}\nextends: ['${site}.yaml']\n")
    assert [load(path).experiment.slurm.cpus_per_task for path in (by_environment, by_variable)] == [1, 1]
    assert load(by_variable, "vars.site=cluster").experiment.slurm.cpus_per_task == 16
    monkeypatch.setenv("SITE", "cluster")
    assert load(by_environment).experiment.slurm.cpus_per_task == 16
    monkeypatch.setenv("SITE", "moon")
    assert f"a.yaml:2: extends: {tmp_path / 'moon.yaml'}: no such file" in fault(by_environment)
    unset = write(tmp_path, "c.yaml", "name: c\nextends: '${env:NO_SUCH_SITE}.yaml'\n")
    assert "c.yaml:2: extends: ${env:NO_SUCH_SITE}: NO_SUCH_SITE is not set" in fault(unset)


def test_expressions_work_wherever_a_value_stands(tmp_path: Path) -> None:
    text = """\
name: study-${n}
vars: {n: 3, max_iters: 200, warmup_ratio: 0.05}
base: {trainer: {betas: ["${1 - 0.1}", 0.95]}, data: {file_path: "x-${n}.jsonl"}}
features:
  warmup: {trainer.warmup_steps: "${int(max_iters * warmup_ratio)}"}
  lr: {levels: {low: {trainer.learning_rate: "${1e-3 / n}"}, high: {trainer.learning_rate: "${1e-3 * n}"}}}
cells: {both: [warmup, "lr.${env:LEVEL,high}"]}
exclude: [["warmup", "lr.${env:OTHER,low}"]]
design: [baseline, {factorial: "${n - 1}"}]
seeds: ["${n}", "${n + 1}"]
slurm: {cpus_per_task: "${n}", setup: ["echo ${n}"], extra: {nodelist: "node${n}"}}
"""
    loaded = load(write(tmp_path, "e.yaml", text), "trainer.batch_size=${2 * n}")
    study = loaded.experiment
    assert study.name == "study-3"
    assert study.base == {"trainer.betas": [0.9, 0.95], "data.file_path": "x-3.jsonl"}
    assert study.features["warmup"] == {"trainer.warmup_steps": 10}
    assert study.features["lr"]["levels"]["high"] == {"trainer.learning_rate": 0.003}
    assert study.cells == {"both": ["warmup", "lr.high"]}
    assert study.exclude == [["warmup", "lr.low"]]
    assert study.design == ["baseline", {"factorial": 2}]
    assert study.seed_list == [3, 4]
    assert study.slurm.cpus_per_task == 3
    assert (study.slurm.setup, study.slurm.extra) == (["echo 3"], {"nodelist": "node3"})
    assert loaded.forced == {"trainer.batch_size": 6}
    assert "--set: trainer.batch_size: ${m}: no such variable" in fault(tmp_path / "e.yaml", "trainer.batch_size=${m}")


# ---- precedence: defaults < extended < file < feature < --set, each step with the place that is named

STEPS = {  # key: the value that must win, and the place that must be named
    "trainer.weight_decay": (0.1, "default"),
    "trainer.eval_tokens": (2, "far.yaml:1"),
    "trainer.eval_interval": (3, "near.yaml:2"),
    "trainer.ckpt_interval": (4, "e.yaml:3"),
    "trainer.grad_norm_clip": (5.0, "feature hot, e.yaml:5"),
    "trainer.batch_size": (6, "feature cold, e.yaml:6"),
    "trainer.log_interval": (7, "--set"),
}
FAR = {"data.file_path": "x", "model.model_type": "gpt-nano"}


def settings(layer: int) -> str:
    """The setting that this layer decides, and other values for all that higher ones decide."""
    chosen = {key: value for number, (key, (value, _)) in enumerate(STEPS.items()) if number == layer}
    lost = {key: 90 + layer for number, key in enumerate(STEPS) if number > layer}
    return json.dumps(FAR | chosen | lost if layer == 1 else chosen | lost)


def layered(folder: Path) -> Loaded:
    write(folder, "far.yaml", f"base: {settings(1)}\n")
    write(folder, "near.yaml", f"extends: far.yaml\nbase: {settings(2)}\n")
    features = f"features:\n  hot: {settings(4)}\n  cold: {settings(5)}\n"
    path = write(folder, "e.yaml", f"name: e\nextends: near.yaml\nbase: {settings(3)}\n{features}")
    return load(path, "trainer.log_interval=7")


@pytest.mark.parametrize("key", STEPS)
def test_each_layer_wins_over_those_below_and_is_named(tmp_path: Path, key: str) -> None:
    value, place = STEPS[key]
    loaded = layered(tmp_path)
    run = matrix.runs(loaded, lambda config: (100, None))[-1]
    assert run.cell == "all_on"
    assert run.config.flat()[key] == value
    assert value_origins.of_run(loaded, run.features, run.config)[key].replace(f"{tmp_path}/", "") == place


def test_origins_name_expressions_variables_and_what_is_derived(tmp_path: Path) -> None:
    path = write(tmp_path, "sizes.yaml", SIZES.replace("iters: 80", "iters: '${half * 2}', half: 20"))
    loaded = load(f"{path}#large", "vars.half=30")
    run = matrix.runs(loaded, lambda config: (100, None))[0]
    found = {
        key: text.replace(f"{tmp_path}/", "") for key, text in value_origins.of_run(loaded, (), run.config).items()
    }
    assert run.config.trainer.max_iters == 60
    assert found["trainer.max_iters"] == "sizes.yaml:6 ${iters} (iters: sizes.yaml:14; half: --set)"
    assert found["model.n_head"] == "model_type gpt-mini"
    assert found["model.n_layer"] == "sizes.yaml:10"
    assert found["model.vocab_size"] == "tokenizer gpt2"
    assert found["model.block_size"] == "data.block_size"
    assert found["system.seed"] == "sizes.yaml:10"
    assert found["model.swiglu"] == "default"
    rope = matrix.runs(loaded, lambda config: (100, None))[1]
    assert value_origins.of_run(loaded, rope.features, rope.config)["model.positions"] == "model.rope"
    assert found["model.n_kv_head"] == "model.n_head"
    assert found["trainer.schedule"] == found["trainer.use_cosine"] == "default"
    assert list(found) == list(run.config.flat())


def test_origins_of_what_a_schedule_and_an_optimizer_fill_in(tmp_path: Path) -> None:
    text = "name: e\nbase: {data.file_path: x, trainer.schedule: infinite, trainer.optimizer: sgd}\n"
    found = placed(load(write(tmp_path, "e.yaml", text)), tmp_path)
    assert found["trainer.use_cosine"] == "trainer.schedule"
    assert found["trainer.anneal_steps"] == "a part of trainer.max_iters"
    assert found["trainer.momentum"] == "default of sgd"
    short = write(tmp_path, "f.yaml", "name: e\nbase: {data.file_path: x, trainer.use_cosine: true}\n")
    assert placed(load(short), tmp_path)["trainer.schedule"] == "trainer.use_cosine"


def placed(loaded: Loaded, folder: Path) -> dict[str, str]:
    """Who set each value of the study's first run."""
    run = matrix.runs(loaded, lambda config: (100, None))[0]
    return {
        key: text.replace(f"{folder}/", "")
        for key, text in value_origins.of_run(loaded, run.features, run.config).items()
    }


def test_plan_as_tree_and_json_and_show_of_a_planned_run(workspace: Workspace) -> None:
    study = workspace.write_study(extra="seeds: [4, 5]\nconfigs: {quick: {base: {trainer.max_iters: 9}}}\n")
    tree = workspace.run("plan", f"{study}#quick", "--format", "tree").stdout
    assert f"study-quick: 14 runs in out/study-quick/, from {study}#quick" in tree
    assert f"trainer.warmup_steps: 8  (feature warmup, {study}:12)" in tree
    plan = json.loads(workspace.run("plan", study, "--format", "json").stdout)
    assert [(run["cell"], run["seed"]) for run in plan["runs"][:3]] == [("baseline", 4), ("baseline", 5), ("swiglu", 4)]
    assert plan["runs"][2]["config"]["model"]["swiglu"] is True
    assert plan["runs"][2]["id"] in workspace.run("plan", study).stdout
    shown = workspace.run("show", f"{study}#quick", "--run", "rope-seed5", "--set", "trainer.batch_size=1").stdout
    assert "rope-seed5-" in shown.splitlines()[0]
    assert any(line.split() == ["trainer.batch_size", "1", "--set"] for line in shown.splitlines())
    assert any(line.split()[:2] == ["system.seed", "5"] for line in shown.splitlines())
    assert "no such run" in workspace.run("show", study, "--run", "rpoe", code=2).stderr
    assert "choose table, tree or json" in workspace.run("plan", study, "--format", "xml", code=2).stderr
    assert sorted(path.name for path in workspace.folder.iterdir()) == ["study.yaml"]


def test_both_spellings_of_a_setting_merge_alike_at_any_depth(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a.yaml",
        "name: a\ncommand: train {flags}\nmetrics: {csv: log.csv}\ndesign: [baseline]\n"
        "base: {opt: {sched: {wd: 4, keep: 1}, betas: [1, 2]}, drop: {a: 1, b: {c: 2}}, off: null}\n"
        "features: {f: {opt: {sched: {wd: 7}}}, g: {levels: {x: {opt.sched.wd: 1}}}}\n",
    )
    write(tmp_path, "b.yaml", "extends: a.yaml\nbase: {opt.sched.wd: 5}\nfeatures: {f: {opt.sched.wd: 8}}\n")
    path = write(
        tmp_path,
        "c.yaml",
        "extends: b.yaml\n"
        "base: {opt: {sched: {wd: 9}, betas: [3]}, drop: null, off: {on: 1}}\n"
        "features: {f: {opt: {sched.wd: 10}}, g: {levels: {x: {opt: {sched: {wd: 2}}}}}}\n",
    )
    loaded = load(path)
    assert loaded.experiment.base == {"opt.sched.wd": 9, "opt.sched.keep": 1, "opt.betas": [3], "off.on": 1}
    assert [level.overrides for group in loaded.experiment.levels() for level in group] == [
        {"opt.sched.wd": 10},
        {"opt.sched.wd": 2},
    ]
    run = matrix.runs(loaded, lambda _: (0, None))[0]
    origin = value_origins.of_run(loaded, (), run.config)
    assert origin["settings.opt.sched.wd"] == f"{path}:2"
    assert origin["settings.opt.sched.keep"] == f"{tmp_path / 'a.yaml'}:5"
    assert load(path, "opt.sched.wd=11").forced == {"opt.sched.wd": 11}
    write(tmp_path, "twice.yaml", "extends: a.yaml\nbase: {opt: {sched: {wd: 5}}, opt.sched.wd: 6}\n")
    assert "twice.yaml:2: base.opt.sched.wd: duplicate key" in fault(tmp_path / "twice.yaml")


def test_a_feature_that_sets_null_takes_the_section_away(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "s.yaml",
        "name: s\ncommand: train {flags}\nmetrics: {csv: log.csv}\nbase: {opt: {lr: 1, sched: {wd: 4}}}\n"
        "features: {f: {opt.sched: null}, g: {opt.sched.wd: 5}}\ndesign: [baseline, one_at_a_time]\n",
    )
    runs = {run.cell: run for run in matrix.runs(load(path), lambda _: (0, None))}
    assert getattr(runs["f"].config, "settings", None) == {"opt.lr": 1, "opt.sched": None}
    text = path.read_text().replace("{f: {opt.sched: null}, g:", "{g:").replace("5}}", "5}, f: {opt.sched: null}}")
    path.write_text(text + "cells: {both: [f, g]}\n")
    with pytest.raises(AblatrixError, match=r"cell both: g sets opt\.sched\.wd: 5, and f sets opt\.sched: null"):
        matrix.runs(load(path), lambda _: (0, None))
