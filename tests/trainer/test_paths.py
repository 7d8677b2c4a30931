"""Paths as users write them: home folders, variables, URLs, blanks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from ablatrix.trainer.config import SystemConfig, from_flags
from ablatrix.trainer.config.paths import expand_path
from ablatrix.trainer.data import warm_cache
from ablatrix.trainer.rundir.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("written", "inside"),
    [
        ("~/x.jsonl", "x.jsonl"),
        ("$HOME/a b.jsonl", "a b.jsonl"),
        ("${HOME}/x.jsonl\n", "x.jsonl"),
        ("file://{home}/a%20b.jsonl", "a b.jsonl"),
        ("file://localhost{home}/x.jsonl", "x.jsonl"),
    ],
)
def test_paths_are_expanded(written: str, inside: str, home: Path) -> None:
    assert expand_path(written.replace("{home}", str(home))) == f"{home}/{inside}"


@pytest.mark.parametrize("plain", ["data/x.jsonl", "~x.jsonl", "a$b/(c)", "a $b.jsonl", "C:\\x", "50% off.jsonl", ""])
def test_what_needs_no_expansion_stays(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("b", "b")
    assert expand_path(plain) == plain


def test_an_existing_file_wins_over_a_variable(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    Path("$HOME").touch()
    assert expand_path("$HOME") == "$HOME"


@pytest.mark.parametrize(
    ("written", "advice"),
    [
        ("https://host/a b.jsonl", "curl -fLO 'https://host/a b.jsonl'"),
        ("s3://bucket/x.jsonl", "aws s3 cp s3://bucket/x.jsonl ."),
        ("hf://datasets/owner/name@main/d/x.jsonl", " warm-cache --data owner/name:d/x.jsonl"),
        ("https://huggingface.co/datasets/o/n/resolve/main/x.jsonl?download=true", "warm-cache --data o/n:x.jsonl"),
        ("abfs://c@a/x", "is a URL"),
        ("/scratch/$NOT_SET_HERE/x", "NOT_SET_HERE is not set"),
        ("~no-such-user-here/x", "home folder of ~no-such-user-here"),
        ("caf\udce9.jsonl", "is not UTF-8"),
        ("  ", "blank; give a path"),
    ],
)
def test_what_cannot_be_a_path_is_refused_with_advice(written: str, advice: str) -> None:
    with pytest.raises(ConfigError) as refused:
        from_flags([f"--data.file_path={written}"])
    (line,) = refused.value.lines
    assert line.startswith("--data.file_path: ") and advice in line


def test_every_folder_setting_is_expanded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ABLATRIX_CACHE", "~/cache")
    config = from_flags(["--data.file_path=~/x.jsonl", "--system.work_dir=~/run"])
    assert config.data.file_path == f"{home}/x.jsonl"
    assert (config.system.work_dir, config.system.cache_dir) == (f"{home}/run", f"{home}/cache")
    assert warm_cache.parser().parse_args([]).cache_dir == home / "cache"
    given = warm_cache.parser().parse_args(
        ["--tokens", "~/x", "--from", "$HOME/y", "--cache-dir", "~/c", "--data-dir=~/d"]
    )
    found = [*given.tokens, given.source, given.cache_dir, given.data_dir]
    assert [os.path.relpath(path, home) for path in found] == ["x", "y", "c", "d"]


def test_a_cache_that_cannot_be_a_path(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ABLATRIX_CACHE", "s3://bucket/cache")
    with pytest.raises(ValidationError):
        SystemConfig()
    assert warm_cache.main([]) == 2
    assert "ABLATRIX_CACHE: 's3://bucket/cache' is a URL" in capsys.readouterr().err
