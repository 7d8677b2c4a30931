"""Messages about an experiment file use YAML's words and name file, line, key, what is expected and what was found."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.trainer.config import from_flags, keys, validate
from ablatrix.trainer.rundir.errors import AblatrixError, ConfigError

HEAD = "name: s\nbase: {data: {file_path: a.jsonl}}\n"
PYTHON = re.compile(
    r"constrained|Input should|(?<!model)_(type|parsing|error)\b|\bdict\b|\bNone\b|\bTrue\b|\bFalse\b|\bstr\b|tuple"
    r"|\[key\]|valid (integer|string|number|boolean|list|dictionary)|function-|\^|instance of|validat"
)
WRONG: tuple[Any, ...] = (
    None,
    True,
    3,
    -1,
    2.5,
    float("nan"),
    2**70,
    "",
    "many",
    "a b\n",
    [],
    [1],
    ["x"],
    {},
    {"a": 1},
)


def refusal(tmp_path: Path, text: str, *sets: str) -> str:
    path = tmp_path / "e.yaml"
    path.write_text(text)
    with pytest.raises(AblatrixError) as caught:
        matrix.runs(load_experiment(path, sets), lambda _: (300, None))
    return "\n".join(caught.value.lines)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "base: {trainer.learning_rate: [1e-4, 3e-4]}",
            "must be a number (more than 0), found a list of 2; to compare",
        ),
        ("base: {trainer.max_iters: many}", "must be a whole number (1 or more), found 'many'"),
        ("base: {trainer.max_iters: 1_000}", "found '1_000'; write 1000"),
        ("base:\n  trainer.max_iters: 1,000", "found '1,000'; write 1000"),
        ("base: {trainer.max_iters: '500'}", "write 500, without quotes"),
        ("base: {trainer.max_iters: 2.5}", "must be a whole number (1 or more), found 2.5"),
        ("base: {trainer.max_iters: }", "found nothing; give a value, or leave the key out"),
        ("base: {model.norm: }", "found nothing; write none, or leave the key out"),
        ("base: {trainer.max_iters: $STEPS}", "found '$STEPS'; write ${env:STEPS}"),
        ("launcher: slurm", "found 'slurm'; for example `launcher: sbatch`"),
        (".common: {a: 1}", "keys that only hold anchors start with x-: x-common"),
        ("base: {trainer.max_iters: 0}", "must be 1 or more, found 0"),
        ("base: {trainer.learning_rate: .inf}", "must be a finite number (more than 0), found inf"),
        ("base: {model.rope: yes}", "must be true or false, found 'yes'; write true"),
        ("base: {model.rope: Off}", "must be true or false, found 'Off'; write false"),
        ("base: {model.rope: 1}", "must be true or false, found 1"),
        ("base: {model.embd_pdrop: 1}", "must be less than 1, found 1"),
        (
            "base: {trainer.dtype: bf16}",
            "must be one of float32, bfloat16, auto, found 'bf16' (did you mean bfloat16?)",
        ),
        ("base: {trainer.device: gpu}", "must be auto, cpu, mps, cuda or cuda:NUMBER, found 'gpu'"),
        ("base: {trainer.betas: [0.9]}", "trainer.betas: too few entries: a list of 1"),
        ("base: {trainer.betas: [0.9, 2]}", "trainer.betas: entry 2: must be less than 1, found 2"),
        ("base: {trainer.betas: 0.9}", "trainer.betas: must be a list, found 0.9"),
        ("base: {trainer.resume: ''}", "must not be empty"),
        ("base: {trainer: 5}", "base.trainer: must be a mapping such as `trainer.device: ...`, found 5"),
        ("base: {trainer.lr: 1}", "unknown key (did you mean trainer.learning_rate?)"),
        ("base: {model: {hidden_size: 1}}", "unknown key (did you mean model.n_embd?)"),
        ("base: {data: {seq_len: 1}}", "unknown key (did you mean data.block_size?)"),
        ("base: {model: {ctx_len: 1}}", "unknown key (did you mean model.block_size?)"),
        ("base: {trainer: {wd: 1}}", "unknown key (did you mean trainer.weight_decay?)"),
        ("base: {optim: {name: x}}", "base.optim.name: unknown key\n"),
        ("base: {dropout: 1}", "unknown key (did you mean model.resid_pdrop?)"),
        ("base: [1]", "base: must be a mapping such as `model.swiglu: true`, found a list of 1"),
        ("features: [swiglu]", "features: must be a mapping (`key: value`), found a list of 1; for example `features:"),
        ("features: {lr: {levels: [1, 2]}}", "features.lr.levels: levels are names with settings, `lr: {levels: {low:"),
        ("features: {lr: {levels: }}", "features.lr.levels: levels are names with settings"),
        ("features: {lr: {levels: {}}}", "found an empty mapping"),
        ("features: {lr: {levels: {a: {model.rope: true}}, model.swiglu: true}}", "and nothing else beside them"),
        ("features: {lr: {trainer.learning_rate: {levels: [1]}}}", "levels are names with settings"),
        ("modle: {rope: true}", "modle: unknown key (settings go under base: did you mean base.model?)"),
        ("optim: {lr: 1, scheduler: cosine}", "optim: unknown key\n"),
        ("scheduler: {name: cosine}", "scheduler: unknown key\n"),
        ("scheduler: cosine", "scheduler: unknown key (settings go under base: did you mean base.trainer.schedule?)"),
        ("training: {lr: 1}", "training: unknown key (settings go under base: did you mean base.trainer?)"),
        ("lr: 1", "lr: unknown key (settings go under base: did you mean base.trainer.learning_rate?)"),
        ("experiment_info: {authors: x}", "unknown key; keys: name, description, date, hypothesis"),
        ("command: run {flags}\nmetrics: {csv: a}\nfeatures: {a: {levels: {}}}", "levels are names with settings"),
        ("features: {a: [model.rope]}", "features.a: must be a mapping such as `model.swiglu: true`, found a list"),
        (
            "seeds: many",
            "must be a whole number or a list or a mapping (`key: value`), found 'many'; for example",
        ),
        ("seeds: [1, x]", "seeds: entry 2: must be a whole number, found 'x'"),
        ("seeds: [1, -2]", "seeds: entry 2: must be 0 or more, found -2"),
        ("seed: 3", "seed: unknown key (did you mean seeds?)"),
        (
            "design: baseline",
            "design: must be a list, found 'baseline'; for example `design: [baseline, one_at_a_time]`",
        ),
        ("design: [{factorial: null}]", "{factorial: null}: the most features that are on must be 1 or more"),
        ("exclude: [rope]", "exclude: entry 1: must be a list, found 'rope'; for example `exclude: [[rope, alibi]]`"),
        ("cells: {a: rope}", "cells.a: must be a list, found 'rope'"),
        ("slurm: {'${x': 1}", "unknown key"),
        ("launcher: true", "launcher: must be one of auto, local, submitit, sbatch, found true"),
        ("slurm: {gpus: 2}", "slurm.gpus: unknown key (did you mean gpus_per_node?)"),
        ("slurm: {walltime: 2}", "slurm.walltime: unknown key (did you mean time?)"),
        ("slurm: {max_parallel: lots}", "slurm.max_parallel: must be a whole number (1 or more), found 'lots'"),
        ("slurm: [a]", "slurm: must be a mapping (`key: value`), found a list of 1"),
        ("budget: 0", "budget: must be more than 0, found 0"),
        ("budget: much", "budget: must be a number (more than 0), found 'much'"),
        ("vars: [1]", "vars: must be a mapping of names to values, found a list of 1"),
        ("experiment_info: {date: 31.1.2026}", "'31.1.2026' is not a date; write YYYY-MM-DD"),
        ("command: 5.5", "only valid with `command:`"),
        ("command: {a: 1}", "command: must be a string or a list, found a mapping (a)"),
        ("command: run\nmetrics: {cvs: a}", "metrics.cvs: unknown key (did you mean csv?)"),
        ("command: run\nmetrics: log.csv", "metrics: must be a mapping (`key: value`), found 'log.csv'"),
    ],
)
def test_each_fault_in_yamls_words(tmp_path: Path, line: str, words: str) -> None:
    key = line.partition(":")[0]
    head = "name: s\n" if key == "base" else HEAD
    message = refusal(tmp_path, f"{head}{line}\n")
    if line != "command: 5.5":
        assert words in f"{message}\n"
        lines = range(head.count("\n") + 1, head.count("\n") + line.count("\n") + 2)
        assert any(part.startswith(f"{tmp_path}/e.yaml:{n}: ") for part in message.splitlines() for n in lines)
    assert not PYTHON.search(message), message


def answer(call: Callable[[], Any]) -> str:
    """The message, '' where the value is taken."""
    try:
        call()
    except AblatrixError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("strict", [True, False], ids=["file", "flags"])
def test_no_wrong_value_of_any_setting_is_answered_in_pythons_words(strict: bool) -> None:
    answers = 0
    for key, _ in keys():
        section, _, name = key.partition(".")
        for value in WRONG:
            message = answer(partial(validate, {section: {name: value}}, strict))
            answers += bool(message)
            assert not PYTHON.search(message), (key, value, message)
            assert not message or message.startswith((f"{key}: ", f"{section}: ")), (key, value, message)
    assert answers > 200


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--trainer.max_iters=1e3", "--trainer.max_iters: must be a whole number (1 or more), found '1e3'; write 1000"),
        ("--model.rope=maybe", "--model.rope: must be true or false, found 'maybe'"),
        ("--trainer.lr=3", "--trainer.lr: unknown flag (did you mean trainer.learning_rate?)"),
        ("--trainer.learning_rate=fast", "--trainer.learning_rate: must be a number (more than 0), found 'fast'"),
        ("--trainer.optimizer=adam", "--trainer.optimizer: must be one of adamw, sgd, muon, adafactor, found 'adam'"),
    ],
)
def test_flags_of_a_single_run(flag: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_flags([flag])
    assert words in str(caught.value)


def test_names_and_values_are_reported_together(tmp_path: Path) -> None:
    message = refusal(tmp_path, HEAD + "features:\n  a: {trainer.lr: 1}\n  b: {trainer.max_iters: x}\nseeds: many\n")
    assert [line.split(": ")[0].rpartition(":")[2] for line in message.splitlines()] == ["4", "5", "6"]
    alone = refusal(tmp_path, HEAD + "features:\n  b: {trainer.max_iters: x}\n")
    assert [line.partition(" ")[2] for line in (alone, message.splitlines()[1])] == [
        "features.b.trainer.max_iters: must be a whole number (1 or more), found 'x'"
    ] * 2


def test_set_may_replace_a_wrong_value(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("name: s\nbase: {data.file_path: , trainer.max_iters: many}\n")
    sets = ["data.file_path=a.jsonl", "trainer.max_iters=5"]
    runs = matrix.runs(load_experiment(tmp_path / "e.yaml", sets), lambda _: (300, None))
    assert {run.config.steps for run in runs} == {5}


def test_a_wrong_expression_does_not_hide_other_faults(tmp_path: Path) -> None:
    message = refusal(
        tmp_path, HEAD + "features: {a: {trainer.max_iters: '${nope}', model.rop: true}}\nlauncher: pbs\n"
    )
    assert "no such variable" in message
    assert "model.rop: unknown key" in message
    assert "launcher: must be one of" in message
    assert "found '${nope}'" not in message


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ("name: 007", ("name",), "007"),
        ("name: 1e3", ("name",), "1e3"),
        ("name: true", ("name",), "true"),
        ("name: 2024-01-01", ("name",), "2024-01-01"),
        ("name: s\ncells: {1: [on, 1e3]}", ("cells",), {"1": ["on", "1e3"]}),
        ("name: s\nexclude: [[on, 007]]", ("exclude",), [["on", "007"]]),
        ("name: s\nslurm: {account: 007}", ("slurm", "account"), "007"),
        ("name: s\noutput: 2024", ("output",), "2024"),
        ("name: s\nexperiment_info: {name: 1.10}", ("experiment_info", "name"), "1.10"),
        ("name: ${env:V}", ("name",), "007"),
        ("name: ${v}\nvars: {v: 1.10}", ("name",), "1.10"),
        ("name: s-${v}\nvars: {v: 1.10}", ("name",), "s-1.10"),
        ("name: s\nseeds: 1-5", ("seed_list",), [1, 2, 3, 4, 5]),
        ("name: s\nseeds: '1, 2, 3'", ("seed_list",), [1, 2, 3]),
        ("name: s\nseeds: [1-3, 7]", ("seed_list",), [1, 2, 3, 7]),
        ("name: s\nseeds: 1e1", ("seed_list",), list(range(1, 11))),
        ("name: s\nslurm:\nfeatures:\nbase: {trainer: }", ("base",), {}),
        ("name: s\nx-a: &a {trainer.max_iters: 1e3}\nbase: {<<: *a}", ("base",), {"trainer.max_iters": 1000}),
        (
            "name: s\nbase: {data.text_key: 007, data.file_path: 1e3}",
            ("base",),
            {"data.text_key": "007", "data.file_path": "1e3"},
        ),
        ("name: s\nbase: {data.tokenizer: '${env:V}'}", ("base",), {"data.tokenizer": "007"}),
        (
            "name: s\nbase: {trainer.sample_prompt: [1.10, true, x]}",
            ("base",),
            {"trainer.sample_prompt": ["1.10", "true", "x"]},
        ),
        ("name: s\nconfigs: {c: {x-b: 1}}\nx-note: ${nothing}", ("name",), "s"),
    ],
)
def test_texts_and_numbers_arrive_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, path: tuple[str, ...], value: Any
) -> None:
    monkeypatch.setenv("V", "007")
    file = tmp_path / "e.yaml"
    names = "features: {'on': {model.rope: true}, 007: {model.swiglu: true}, 1e3: {model.rmsnorm: true}}\n"
    file.write_text(f"{line}\n{'' if 'features' in line else names}")
    found: Any = load_experiment(file).experiment
    for part in path:
        found = getattr(found, part)
    assert found == value
    assert isinstance(found, type(value))


@pytest.mark.parametrize(
    ("given", "path", "value"),
    [
        ("name=007", "name", "007"),
        ("name=true", "name", "true"),
        ("name='1e3'", "name", "1e3"),
        ("seeds=1-3", "seeds", [1, 2, 3]),
        ("output=2024", "output", "2024"),
    ],
)
def test_set_takes_texts_as_they_were_written(tmp_path: Path, given: str, path: str, value: Any) -> None:
    (tmp_path / "e.yaml").write_text(HEAD)
    assert getattr(load_experiment(tmp_path / "e.yaml", [given]).experiment, path) == value


def test_settings_of_set_are_taken_as_written(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(HEAD)
    loaded = load_experiment(tmp_path / "e.yaml", ["data.tokenizer=007", "trainer.max_iters=1e3", "data.text_key=true"])
    assert loaded.forced == {"data.tokenizer": "007", "trainer.max_iters": 1000, "data.text_key": "true"}
