"""`--config FILE` with overrides behind it, the help of a section, and runs' folders as `trainer.resume`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ablatrix.trainer import cli
from ablatrix.trainer.config import from_flags, keys
from ablatrix.trainer.rundir.errors import ConfigError, UserError
from tests.support.workspace import without_clock

FILE = """\
data: {file_path: corpus.jsonl, tokenizer: sample}
model.rope: true
trainer:
  learning_rate: 5e-4
  max_iters: 200
  eval_interval: 10%
  betas: [0.9, 0.99]
info: {name: off, date: 2026-01-31}
"""


def write(folder: Path, text: str, name: str = "run.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_a_yaml_file_with_overrides_behind_it(tmp_path: Path) -> None:
    file = write(tmp_path, FILE)
    config = from_flags(["--config", file])
    assert (config.trainer.learning_rate, config.trainer.betas, config.model.rope) == (5e-4, (0.9, 0.99), True)
    assert (config.info.name, config.info.date, config.trainer.eval_interval) == ("off", "2026-01-31", 20)
    words = ["--config", file, "trainer.max_iters=50", "--model.rope", "false", "--trainer.min_lr_ratio", "0.2"]
    config = from_flags(words)
    assert (config.trainer.max_iters, config.trainer.eval_interval, config.model.rope) == (50, 5, False)
    assert from_flags(["--config", write(tmp_path, "trainer.epochs: 3\n")]).trainer.epochs == 3


def test_a_config_json_gives_the_same_run(tmp_path: Path) -> None:
    config = from_flags(["--config", write(tmp_path, FILE)])
    file = write(tmp_path, config.to_json(), "config.json")
    assert from_flags(["--config", file]).fingerprint() == config.fingerprint()


def test_a_value_that_looks_like_an_assignment_stays_a_value() -> None:
    config = from_flags(["--trainer.sample_prompt", "model.rope=true", "info.name=a=b"])
    assert (config.trainer.sample_prompt, config.model.rope) == (("model.rope=true",), False)
    assert config.info.name == "a=b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("trainer: {max_iters: 5, max_iters: 6}", "duplicate key 'max_iters'"),
        ("trainer: [1", "not a YAML file"),
        ("- 1", "the top level must be an object"),
        ("trainer: {max_iters: '5'}", "trainer.max_iters"),
        ("trainer: {max_itres: 5}", "did you mean trainer.max_iters?"),
        ("model: {type: x}", "did you mean model.model_type?"),
        ("data: {shuffle: true}", "data.shuffle: unknown key; keys of data: file_path, split, test_size"),
        ("name: s\nbase: {trainer.max_iters: 5}", "describes a study, not a single run; give it to `submit`"),
    ],
)
def test_faults_of_a_file_are_explained(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as refused:
        from_flags(["--config", write(tmp_path, text)])
    assert words in str(refused.value)


def test_an_unknown_override_without_dashes() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_itres: unknown flag"):
        from_flags(["trainer.max_itres=5"])


def test_help_of_one_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help", "data"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    shown = [key for key, _ in keys() if f" --{key} VALUE " in text]
    assert shown == [key for key, _ in keys() if key.startswith("data.")]
    assert "--data.block_size VALUE tokens per training window (default: 256)" in text


def test_resume_from_a_runs_folder(train: Callable[..., Path], tmp_path: Path) -> None:
    first = train("first", trainer__max_iters=12)
    longer = train("longer", trainer__max_iters=12, trainer__resume=first)
    assert without_clock(longer) == without_clock(first)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint found"):
        train("second", trainer__resume=tmp_path / "empty")
