"""Names pass an allow-list wherever they stand; all else is refused in one line, before anything is created."""

import json
import os
import random
import re
from pathlib import Path

import pytest

from ablatrix.orchestrator import cli
from tests.support.evidence import Cases, Tally
from tests.trust.hostile_matrices import yaml_text

NASTY = (
    *("", " ", ".", "..", "/", "a/b", "../x", "/etc", "~", "~root", "a\\b", "-x", "--help", "-", "_a", "+a"),
    *(".hidden", ".snapshots", ".last", "a\0b", "a\nb", "a\n#SBATCH --wrap=x", "a\rb", "a\tb", "a\x1bb", "a ", " a"),
    *("a b", "x" * 81, "x" * 300, "a'b", 'a"b', "a`b`", "$a", "$(touch CANARY)", "${a", "a;b", "a&b", "a|b", "a>b"),
    *("a<b", "a*b", "a?b", "[a]", "{a}", "{{a}}", "{% a %}", "(a)", "a!b", "#a", "a#b", "a%j", "a:b", "a,b", "a=b"),
    *("a@b", "a^b", "é", "e\u0301", "\u0430", "\uff41", "\ufb01", "\u00b2", "\u0663", "\u212a", "a\u200bb", "\u202ea"),
    *("a\u00a0b", "a\u2028b", "a\x85b", "\U0001f422", "\ufeffa", "\ud800"),
)
GOOD = ("a", "A1", "0", "con", "study.json", "loss.csv", "a.b", "a+b-c_d.e", "x" * 80)
OTHERS = {"features": {"f": {"x": 2}}, "cells": {"c": ["f"]}}
FILE = {
    "name": "study",
    "command": ["/bin/true", "{flags}"],
    "metrics": {"csv": "a.csv"},
    "base": {"x": 1},
    **OTHERS,
}


def with_name(place: str, name: str) -> "tuple[dict[str, object], str]":
    """An experiment in which this name stands at this place, and what follows the file's name on the command line."""
    match place:
        case "experiment":
            return {**FILE, "name": name}, ""
        case "feature":
            return {**FILE, "features": {name: {"x": 2}}, "cells": {}}, ""
        case "level":
            return {**FILE, "features": {"f": {"levels": {name: {"x": 2}}}}, "cells": {}}, ""
        case "cell":
            return {**FILE, "cells": {name: ["f"]}}, ""
        case "config":
            return {**FILE, "configs": {name: {"base": {"x": 3}}}}, f"#{name}"
        case "option":
            return {**FILE, "slurm": {"extra": {name: "x"}}}, ""
    raise ValueError(place)


PLACES = ("experiment", "feature", "level", "cell", "config", "option")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["orchestrator", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_nasty_names_are_refused_everywhere(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seed: int,
    cases: Cases,
    tally: Tally,
) -> None:
    rng, count = random.Random(seed), 0
    for place in PLACES:
        for name in rng.sample(NASTY, cases(12, len(NASTY))):
            tree, config = with_name(place, name)
            if place == "config" and re.fullmatch(r"[A-Za-z0-9._+-]{0,74}|.*[\0\ud800].*", name):
                continue  # a config's study is called <study>-<config>; no command line holds the other two
            if (place, name) == ("option", "-x"):
                continue  # sbatch's short name of slurm.exclude
            (folder / "e.yaml").write_text(yaml_text(tree), "utf-8", errors="backslashreplace")
            code = call(monkeypatch, "submit", f"e.yaml{config}", "--launcher", "local")
            told = capsys.readouterr().err
            assert code == 2, (place, name, told)
            assert told.count("\n") == 1, (place, name, told)
            assert told.startswith("error: "), told
            assert told.rstrip("\n").isprintable(), (place, name, told)
            assert os.listdir(folder) == ["e.yaml"]
            count += 1
    tally("names pass an allow-list, wherever they stand", cases=count, detail="1 line each, nothing created")


def test_good_names_are_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in PLACES[:5]:
        for name in GOOD:
            tree, config = with_name(place, name)
            if place == "config" and len(name) > 60:
                continue
            (folder / "e.yaml").write_text(json.dumps(tree))
            code = call(monkeypatch, "plan", f"e.yaml{config}", "--launcher", "local")
            assert (code, capsys.readouterr().err) == (0, ""), (place, name)


@pytest.mark.parametrize(
    "option",
    [
        "outp",
        "output",
        "job",
        "comm",
        "exp",
        "export",
        "arr",
        "wra",
        "o",
        "W",
    ],
)
def test_options_that_are_ours_cannot_be_given_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """sbatch takes the beginning of an option's name for the whole."""
    (folder / "e.yaml").write_text(json.dumps(with_name("option", option)[0]))
    assert call(monkeypatch, "plan", "e.yaml", "--launcher", "local") == 2
    assert "is set by Ablatrix itself" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["cpus_per_task", "N", "time", "gpus-per-node", "p"])
def test_a_wrong_value_of_an_option_that_is_a_setting(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    """It is told like one of the setting, which it is."""
    tree = {**FILE, "slurm": {"extra": {option: ["no", {"value": "of it"}]}}}
    (folder / "e.yaml").write_text(json.dumps(tree))
    assert call(monkeypatch, "plan", "e.yaml", "--launcher", "local") == 2
    assert capsys.readouterr().err.startswith("error: e.yaml:1: slurm.")


def test_names_that_differ_in_case_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a file system that takes them for one they would share their files."""
    (folder / "e.yaml").write_text(json.dumps({**FILE, "features": {"rope": {"x": 2}, "Rope": {"x": 3}}, "cells": {}}))
    assert call(monkeypatch, "plan", "e.yaml", "--launcher", "local") == 2
    assert "features: rope and Rope differ in case only" in capsys.readouterr().err
    (folder / "e.yaml").write_text(json.dumps(FILE))
    (folder / "out/Study").mkdir(parents=True)
    assert call(monkeypatch, "plan", "e.yaml", "--launcher", "local") == 2
    assert "differs from study in case only" in capsys.readouterr().err
    (folder / "out/study").mkdir()  # both are there: the file system knows them apart
    assert call(monkeypatch, "plan", "e.yaml", "--launcher", "local") == 0


@pytest.mark.parametrize(
    ("name", "launcher", "words"),
    [
        ("co:lon", "local", "a colon would end the path of the code"),
        ("back\\slash", "sbatch", "Slurm finds no log in a path with a backslash"),
        ("new\nline", "sbatch", "control characters cannot be used with Slurm"),
        (os.fsdecode(b"\xff"), "local", "is no UTF-8 text"),
        ("a%jb", "submitit", "submitit takes % in a path for its own"),
    ],
)
def test_folders_that_a_job_could_not_be_told(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    launcher: str,
    words: str,
) -> None:
    (folder / name).mkdir()
    monkeypatch.chdir(folder / name)
    Path("e.yaml").write_text(json.dumps(FILE))
    assert call(monkeypatch, "submit", "e.yaml", "--launcher", launcher) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert os.listdir() == ["e.yaml"]


@pytest.mark.parametrize("output", ["-rf", "./-x", "-"])
def test_an_output_that_looks_like_an_option(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    """The job's task would be given its run folders as options, and end without a word in them."""
    (folder / "e.yaml").write_text(json.dumps({**FILE, "output": output}))
    assert call(monkeypatch, "submit", "e.yaml", "--launcher", "local") == 2
    assert "output: a path that begins with - would be taken for an option" in capsys.readouterr().err
    assert os.listdir(folder) == ["e.yaml"]
