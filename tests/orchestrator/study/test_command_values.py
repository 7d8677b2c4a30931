"""Values of an own command arrive as its author wrote them, and keep their place in the run's hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.load import load_experiment

STUDY = """\
name: s
command: [train, --x, {word}, "{{flags}}"]
env: {{V: {word}}}
metrics: {{csv: log.csv}}
base: {{a: {word}, l: [{word}, 2]}}
features: {{f: {{b: {word}}}}}
flags: {{style: --key=value, lists: words}}
design: [one_at_a_time]
"""


def run_of(path: Path, *sets: str) -> Any:
    return matrix.runs(load_experiment(path, sets), lambda _: (0, None))[0].config


def spec(folder: Path, text: str, *sets: str) -> dict[str, Any]:
    path = folder / "s.yaml"
    path.write_text(text)
    found: dict[str, Any] = run_of(path, *sets).spec(folder, "f")
    return found


@pytest.mark.parametrize("word", ["1e-4", "007", "1.10", "yes", "0.1", "+5", ".5", "1_000", "2024-01-01", "0x10", "12"])
def test_a_word_arrives_as_it_was_written(tmp_path: Path, word: str) -> None:
    found = spec(tmp_path, STUDY.format(word=word))
    assert found["command"] == ["train", "--x", word, f"--a={word}", "--l", word, "2", f"--b={word}"]
    assert found["env"]["V"] == word


@pytest.mark.parametrize("word", ["True", "FALSE", "true"])
def test_a_switch_among_the_words_arrives_as_it_was_written(tmp_path: Path, word: str) -> None:
    """Some programs take `False` for false, and any other word for true."""
    text = f"name: s\nvars: {{v: {word}}}\nmetrics: {{csv: a}}\ncommand: [train, --a, {word}, '${{v}}', '--b=${{v}}']\n"
    assert spec(tmp_path, text)["command"] == ["train", "--a", word, word, f"--b={word}"]
    line = (
        f"name: s\nvars: {{v: {word}}}\nmetrics: {{csv: a}}\ncommand: train --a=${{v}} {{flags}}\nbase: {{c: {word}}}\n"
    )
    assert spec(tmp_path, line)["command"] == ["train", f"--a={word}", f"--c={word.capitalize()}"]


def test_so_do_variables_and_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V", "007")
    text = (
        "name: s\ncommand: train {flags}\nmetrics: {csv: a}\nvars: {v: 1e-4}\nbase: {a: '${v}', b: '${env:V}', c: 1}\n"
    )
    assert spec(tmp_path, text, "c=1.10")["command"] == ["train", "--a=1e-4", "--b=007", "--c=1.10"]


def test_the_value_in_quotes_is_the_same_text(tmp_path: Path) -> None:
    quoted, plain = (spec(tmp_path, STUDY.format(word=word)) for word in ("'007'", "007"))
    assert quoted["command"] == plain["command"]


def test_another_spelling_of_the_same_number_is_the_same_run(tmp_path: Path) -> None:
    prints = {word: spec(tmp_path, STUDY.format(word=word).replace("--x, " + word, "--x"))["fingerprint"] for word in
              ("1e-3", "0.001", "1.0E-3", "0.002")}  # fmt: skip
    del prints["0.002"]
    assert len(set(prints.values())) == 3  # env holds the text itself
    text = "name: s\ncommand: train {{flags}}\nmetrics: {{csv: a}}\nbase: {{a: {word}}}\n"
    text = "name: s\ncommand: train {{flags}}\nmetrics: {{csv: a}}\nbase: {{a: {word}}}\n"
    prints = {
        word: spec(tmp_path, text.format(word=word))["fingerprint"] for word in ("1e-3", "0.001", "1.0E-3", "1e-2")
    }
    assert prints["1e-3"] == prints["0.001"] == prints["1.0E-3"] != prints["1e-2"]


def test_names_that_look_like_numbers_are_two_runs(tmp_path: Path) -> None:
    text = "name: s\ncommand: train {{flags}}\nmetrics: {{csv: a}}\nbase: {{version: {word}}}\n"
    assert len({spec(tmp_path, text.format(word=word))["fingerprint"] for word in ("1.1", "1.10", "01.1")}) == 3
