"""What is refused before anything is created: settings that would not arrive, commands that are the same."""

from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.orchestrator.study import command_template, matrix
from ablatrix.orchestrator.study.command_config import CommandConfig
from ablatrix.orchestrator.study.command_flags import Flags
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.submit import preflight
from ablatrix.trainer.rundir.errors import ConfigError

FILE = """\
name: study
command: python train.py --out={run_dir} --rate={rate} {flags}
base: {rate: 0.1, wide: 4}
features:
  fast: {rate: 0.2}
metrics: {csv: log.csv}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def runs(folder: Path, text: str, *sets: str) -> list[matrix.Run]:
    return matrix.runs(load_experiment(write(folder, text), sets), preflight.vocabulary)


def refusals(folder: Path, text: str, *sets: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        runs(folder, text, *sets)
    return caught.value.problems


def spec(run: matrix.Run) -> dict[str, Any]:
    assert isinstance(run.config, CommandConfig)
    return run.config.spec(Path("/x/study") / run.id, run.cell)


def test_a_placeholder_is_not_repeated_among_the_flags(tmp_path: Path) -> None:
    baseline, fast, _ = [spec(run) for run in runs(tmp_path, FILE + "cells: {both: [fast]}\nseeds: [1]\n")] + [{}]
    assert baseline["command"][2].startswith("--out=/x/study/baseline-seed1-")
    assert baseline["command"][3:] == ["--rate=0.1", "--wide=4"]
    assert fast["command"][3:] == ["--rate=0.2", "--wide=4"]


@pytest.mark.parametrize(
    ("style", "words"),
    [
        ("--a.b=c", ["--m.rate=5e-5", "--m.deep.on=True", "--m.b=[0.9, 0.95]", "--m.none=None", "--m.text=a b"]),
        ("--a_b=c", ["--m_rate=5e-5", "--m_deep_on=True", "--m_b=[0.9, 0.95]", "--m_none=None", "--m_text=a b"]),
        ("--b c", ["--rate", "5e-5", "--on", "True", "--b", "0.9", "0.95", "--none", "None", "--text", "a b"]),
        ("--key=value", ["--rate=5e-5", "--on=True", "--b=[0.9, 0.95]", "--none=None", "--text=a b"]),
        ("a.b=c", ["m.rate=5e-05", "m.deep.on=true", "m.b=[0.9,0.95]", "m.none=null", "m.text='a b'"]),
    ],
)
def test_styles_of_flags(tmp_path: Path, style: str, words: list[str]) -> None:
    text = FILE.replace("--rate={rate} ", "").replace(
        "base: {rate: 0.1, wide: 4}",
        f"flags: {style}\nbase: {{m: {{rate: 5e-5, deep: {{on: true}}, b: [0.9, 0.95], none: null, text: a b}}}}",
    )
    baseline = runs(tmp_path, text.replace("{rate: 0.2}", "{m.deep.on: false}"))[0]
    assert spec(baseline)["command"][3:] == words


def test_a_config_file_holds_what_a_flag_would(tmp_path: Path) -> None:
    text = FILE.replace("--rate={rate} {flags}", "{config_file}\nflags: config-file")
    baseline, fast = runs(tmp_path, text)
    assert spec(baseline)["command"][3] == f"/x/study/{baseline.id}/settings.json"
    assert isinstance(fast.config, CommandConfig)
    (files,) = fast.config.files([(fast.seed, Path("/x"))], "fast")
    assert '"rate": 0.2' in files["settings.json"]
    assert baseline.id[-8:] != fast.id[-8:]
    assert "{config_file}" in refusals(tmp_path, text.replace("{config_file}", ""))[0]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (" {flags}", "", 3, "base.wide: not passed to the command; put {wide} or {flags} into `command`"),
        ("--rate={rate} {flags}", "--w={wide}", 5, "features.fast.rate: not passed to the command"),
        ("--rate={rate}", "--rate={ratte}", 2, "{ratte}: no such setting (did you mean rate?)"),
        ("base: {rate: 0.1, wide: 4}", "base: {wide: 4}", 2, "{rate}: only some features set it"),
        ("{flags}", "x{flags}", 2, "must be a word by itself"),
        ("{flags}", "{flags} > log.txt", 2, "no shell reads it"),
        ("python train.py", "A=1 python train.py", 2, "give it under `env:`"),
        ("python train.py", "bash -c 'python train.py {rate}'", 2, "a shell would interpret the values in it"),
        ("--out=", '--json={"a":1} --out=', 2, "is not a placeholder"),
        ("wide: 4", 'wide: "a\\0b"', 3, "NUL"),
        ("wide: 4", '"--wide": 4', 3, "setting names consist of"),
        ("wide: 4", "wide: 4, run_dir: x", 3, "{run_dir} is defined for every run"),
        ("wide: 4}", "wide: 4, a.wide: 1}\nflags: --key=value", 4, "are the same flag"),
        ("csv: log.csv", "csv: loss.csv", 6, "written by Ablatrix"),
        ("csv: log.csv", "csv: log.csv, jsonl: x", 6, "give one source"),
        ("csv: log.csv", "regex: 'loss (?P<loss>.*)'", 6, "no named group for the step"),
        ("csv: log.csv", "regex: '(?P<iter>.*) (?P<lss>.*)'", 6, "no column 'lss' (did you mean loss?)"),
        ("csv: log.csv", "csv: log.csv, columns: {los: x}", 6, "no column 'los'"),
        ("metrics: {csv: log.csv}", "env: {ABLATRIX_SEED: 1}\nmetrics: {csv: a}", 6, "set by Ablatrix"),
        ("metrics: {csv: log.csv}", "resume_command: python train.py --resume\nmetrics: {csv: a}", 5, "resumed run"),
        ("metrics: {csv: log.csv}", "seeds: 3", 2, "metrics: missing"),
        ("metrics: {csv: log.csv}", "seeds: 3\nmetrics: {csv: a}", 6, "seeds: not passed to the command"),
        ("metrics: {csv: log.csv}", "slurm: {nodes: 2}\nmetrics: {csv: a}", 6, "started once, on one node"),
        ("{rate: 0.2}", "{rate: '0.1'}", 5, "changes nothing"),
        ("command: python train.py --out={run_dir} --rate={rate} {flags}", "flags: a.b=c", 2, "with `command:`"),
    ],
)
def test_refused_with_file_and_line(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    assert old in FILE
    problems = refusals(tmp_path, FILE.replace(old, new))
    assert any(f"study.yaml:{line}: " in problem and words in problem for problem in problems), problems


def test_settings_of_the_command_line(tmp_path: Path) -> None:
    assert spec(runs(tmp_path, FILE, "wide=8")[0])["command"][4] == "--wide=8"
    with pytest.raises(Exception, match=r"--set wode: unknown key \(did you mean wide\?\)"):
        runs(tmp_path, FILE, "wode=8")
    assert "--set rate overrides it" in refusals(tmp_path, FILE, "rate=8")[0]


def test_what_a_value_holds_is_no_placeholder() -> None:
    values = {"a": "{b} {{x}} $(date)", "b": "no"}
    rendered = command_template.render(["{a}", "{{a}}", "{flags}"], values, {"c": "{a}"}, Flags())
    assert rendered == [values["a"], "{a}", "--c={a}"]


def test_the_identity_is_what_is_started(tmp_path: Path) -> None:
    """Where a run lies and how its numbers are read changes no id; the command, its values and its variables do."""
    first = runs(tmp_path, FILE)[0].id
    same = FILE.replace("csv: log.csv", "csv: b.csv, steps: 100").replace("metrics", "on_signal: TERM\nmetrics")
    assert runs(tmp_path, same + "output: elsewhere\n")[0].id == first
    for other in (
        FILE.replace("wide: 4", "wide: 5"),
        FILE.replace("train.py", "train2.py"),
        FILE + "env: {A: 1}\n",
        FILE + "workdir: /tmp\n",
    ):
        assert runs(tmp_path, other)[0].id != first


@pytest.mark.parametrize("path", sorted((code_root() / "docs" / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_can_be_planned(path: Path) -> None:
    planned = matrix.runs(load_experiment(path), preflight.vocabulary)
    assert len({run.id for run in planned}) == len(planned) >= 3
    assert all(isinstance(run.config, CommandConfig) for run in planned)


def test_lines_that_go_on_and_texts_that_hold_such_an_end() -> None:
    """A backslash at a line's end joins two lines; within single quotes it is a text, as for a shell."""
    line = "python a.py \\\n --x 'a\\\nb' \"c\\\nd\" e\\\\"
    assert command_template.split(line) == ["python", "a.py", "--x", "a\\\nb", "cd", "e\\"]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ("{csv: m.csv, compare: val_acc}", "val_acc: set `higher_is_better: true`, or false"),
        ("{csv: m.csv, columns: {val_loss: eval/accuracy}}", "eval/accuracy: set `higher_is_better: true`"),
        ("{csv: m.csv, compare: lr}", "not a measure of quality"),
        ("{regex: 'i (?P<iter>.*) (?P<val_mse>.*)'}", "to compare a different value, give it: `compare: val_mse`"),
        ("{regex: 'i (?P<iter>.*) (?P<loss>.*)', compare: mse}", "no pattern has the group named by `compare`"),
        ("{compare: val_mse}", "metrics: give one source"),
    ],
)
def test_measures_that_cannot_be_compared(tmp_path: Path, metrics: str, words: str) -> None:
    assert words in refusals(tmp_path, FILE.replace("{csv: log.csv}", metrics))[0]


def test_a_script_with_our_helper_may_be_compared_by_any_name(tmp_path: Path) -> None:
    text = FILE.replace("--out={run_dir} --rate={rate} {flags}", "").replace("{csv: log.csv}", "{compare: val_mse}")
    source = spec(runs(tmp_path, text + "flags: in-process\n")[0])["metrics"]
    assert (source["kind"], source["columns"], source["compare"]) == ("jsonl", {"val_mse": "val_mse"}, "val_mse")
    assert source["path"].endswith("metrics.jsonl")
