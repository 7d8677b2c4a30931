"""What `check` says about the held-out text."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.submit import data_preflight
from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import ConfigError
from tests.conftest import Verb
from tests.support.forked_python import ForkedPython

Check = Callable[..., tuple[list[str], str]]


def write(path: Path, count: int) -> None:
    records = ({"text": f"document number {k} " * 40, "meta": {"set": "web", "id": k}} for k in range(count))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def check(tmp_path: Path, offline_cache: Path, forked_python: ForkedPython, monkeypatch: pytest.MonkeyPatch) -> Check:
    """check("data.test_size: 5", features="..."): (findings, what is printed) of a study of a.jsonl."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", forked_python.python)
    write(tmp_path / "a.jsonl", 400)
    write(tmp_path / "b.jsonl", 120)

    def check(settings: str, features: str = "rope: {model.rope: true}") -> tuple[list[str], str]:
        head = "name: s\nbase:\n  data.file_path: a.jsonl\n  data.tokenizer: sample\n  data.block_size: 32\n"
        tail = f"  system.cache_dir: {offline_cache}\nfeatures:\n  {features}\n"
        (tmp_path / "e.yaml").write_text(f"{head}  {settings}\n{tail}")
        loaded = load_experiment(Path("e.yaml"))
        runs = matrix.runs(loaded, lambda config: (4096, 4095))
        found = list(data_preflight.check_inputs(loaded, runs))
        try:
            return found, "\n".join(data_preflight.check_corpora(loaded, runs))
        except ConfigError as error:
            return [*found, *error.problems], ""

    return check


def test_small_text_is_warned_about(check: Check) -> None:
    found, said = check("data.test_size: 20")
    assert not found and "warning: the held-out text is small (20 documents with " in said
    found, said = check("data: {test_size: 150}\n  trainer.eval_tokens: 10000000")
    assert not found and ("small" in said) == ("(150 documents" in said)


def test_more_text_held_out_than_trained_on_is_warned_about(check: Check) -> None:
    left = "a.jsonl: data.test_size holds out 399 documents and leaves 1 document to train on"
    assert left in check("data.test_size: 399")[1]
    assert "leaves" not in check("data.test_size: 200")[1]


def test_documents_that_are_never_reached_are_named_by_every_verb(
    check: Check, offline_cache: Path, monkeypatch: pytest.MonkeyPatch, verb: Verb
) -> None:
    with Path("a.jsonl").open("a") as file:
        file.writelines(json.dumps({"text": f"a short one, number {k}"}) + "\n" for k in range(1200))
    monkeypatch.setattr(data_preflight, "SMALL_CORPUS", 1000)
    beginning = "warning: a.jsonl (its beginning): only 400 of 1,600 documents ("
    assert beginning in check("data.test_size: 200")[1]
    assert verb("plan", "e.yaml")[2].startswith(beginning)
    open_tokens(DataConfig(file_path="a.jsonl", tokenizer="sample"), offline_cache)  # now they are counted
    whole = "warning: a.jsonl: only 400 of 1,400 documents ("
    assert whole in check("data.test_size: 200")[1]
    *_, errors = verb("plan", "e.yaml")
    assert errors.startswith(whole) and "set data.sampling to packed or stream" in errors
    found, said = check("data: {test_size: 200, sampling: stream}")
    assert not found and "documents (" not in said and verb("plan", "e.yaml")[2] == ""


def test_a_large_corpus_is_not_read_for_it(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_preflight, "SMALL_CORPUS", 1000)
    assert "small (20 documents)" in check("data.test_size: 20")[1]
    for settings in ("data.test_size: 200", "data.test_size: 0.01", "data.test_file: b.jsonl"):
        found, said = check(settings)
        assert not found and "small" not in said


@pytest.mark.parametrize("settings", ["data.test_size: 0.01", "data.test_file: b.jsonl"])
def test_too_little_text_is_an_error(check: Check, settings: str) -> None:
    found, _ = check(f"{settings}\n  trainer.eval_tokens: 10000000")
    assert len(found) == 1 and "e.yaml:3: " in found[0]
    assert "tokens to score, fewer than trainer.eval_tokens 10,000,000; hold out more text, or lower" in found[0]


def test_domain_keys(check: Check) -> None:
    assert not check("data.domain_key: meta.set")[0]
    found, _ = check("data.domain_key: meta.source")
    assert found == [
        "e.yaml:6: data.domain_key: no document in the beginning of the corpus has a value at 'meta.source'; the keys "
        "are 'text', 'meta.set', 'meta.id'"
    ]


def test_cells_on_different_text(check: Check) -> None:
    other = "other: {data.file_path: b.jsonl}"
    assert "evaluated on different held-out text" in check("data.test_size: 20", other)[1]
    one = check("data.test_file: b.jsonl\n  trainer.eval_tokens: 1000", other)[1]
    assert "different held-out" not in one
