"""Epochs in place of steps: how much text one pass is, and that runs and plans resolve it alike."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.submit import preflight
from ablatrix.trainer.config import RunConfig, from_flags, validation
from ablatrix.trainer.data import corpus_usage, epochs
from ablatrix.trainer.data.batches import training_text
from ablatrix.trainer.data.corpus_settings import follow_corpus
from ablatrix.trainer.data.epochs import rows_per_epoch
from ablatrix.trainer.data.sampling import Packing
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.run import execute
from ablatrix.trainer.rundir.errors import ConfigError, DataError
from ablatrix.trainer.signals import StopSignals

BLOCK = 32


def config_of(path: Path, cache: Path, **settings: Any) -> RunConfig:
    data = {"file_path": str(path), "tokenizer": "sample", "block_size": BLOCK, "test_size": 3, **settings}
    return RunConfig.model_validate({"data": data, "system": {"cache_dir": str(cache)}})


@pytest.fixture
def varied(corpus: Path, tmp_path: Path) -> Path:
    texts = [json.loads(line)["text"][: 20 + 53 * k % 400] for k, line in enumerate(corpus.open())]
    path = tmp_path / "varied.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def test_an_epoch_is_what_sampling_can_reach(varied: Path, offline_cache: Path) -> None:
    config = config_of(varied, offline_cache)
    store = open_tokens(config.data, offline_cache)
    lengths = [store.count(line) for line in range(store.n_lines - 3)]
    assert rows_per_epoch(config) == sum(length for length in lengths if length > BLOCK) / BLOCK
    assert rows_per_epoch(config_of(varied, offline_cache, sampling="stream")) == sum(lengths) / BLOCK
    packed = config_of(varied, offline_cache, sampling="packed", separator=4095)
    packing = Packing(training_text(store, packed.data), BLOCK)
    blocks = sum(len(packing.blocks(group)) for group in packing.groups)
    assert math.isclose(rows_per_epoch(packed), blocks)


def test_of_a_large_corpus_the_padding_is_estimated(
    varied: Path, offline_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ablatrix.trainer.data.sampling.GROUP", 32)
    config = config_of(varied, offline_cache, sampling="packed", separator=4095).data
    store = open_tokens(config, offline_cache)
    whole = corpus_usage.count_rows(store, config)
    monkeypatch.setattr(corpus_usage, "SAMPLED_GROUPS", 8)
    assert corpus_usage.count_rows(store, config) == pytest.approx(whole, rel=0.1)


def test_a_run_and_its_plan_have_the_same_steps(varied: Path, offline_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(
        f"name: e\nbase:\n  data: {{file_path: {varied}, tokenizer: sample, block_size: {BLOCK}, test_size: 3}}\n"
        f"  trainer: {{epochs: 0.5, batch_size: 4}}\n  system.cache_dir: {offline_cache}\n"
        "features: {packed: {data.sampling: packed}, large: {trainer.batch_size: 8}}\n"
    )
    runs = {run.cell: run for run in matrix.runs(load_experiment(path, ()), preflight.vocabulary, follow_corpus)}
    rows = rows_per_epoch(config_of(varied, offline_cache))
    assert runs["baseline"].config.steps == math.ceil(0.5 * rows / 4)
    assert runs["large"].config.steps == math.ceil(0.5 * rows / 8)
    assert (runs["packed"].config.steps or 0) > math.ceil(0.5 * rows / 4), "it reaches more"
    tree = runs["baseline"].config.as_tree()
    run, model = tmp_path / "run", {"model_type": None, "n_layer": 1, "n_head": 1, "n_embd": 8}
    tree |= {"model": model, "system": {**tree["system"], "work_dir": str(run)}}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    argv = [f"--config={tmp_path / 'config.json'}", "--trainer.epochs=0.5"]
    assert execute(from_flags(argv), argv, StopSignals()) == 0
    written = validation.load(run / "config.json").trainer
    assert (written.max_iters, written.epochs) == (runs["baseline"].config.steps, None)
    assert json.loads((run / "summary.json").read_text())["iters"] == written.max_iters


def test_what_is_not_counted_yet_is_refused_with_the_command(
    varied: Path, offline_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(epochs, "SMALL_CORPUS", 0)
    new = tmp_path / "new.jsonl"
    new.write_text(varied.read_text() + varied.read_text())
    command = f"warm-cache --tokenizer sample --cache-dir {offline_cache} --tokens {new}`"
    with pytest.raises(DataError, match=f"are not counted yet; run `.*{command}, or set trainer.max_iters"):
        rows_per_epoch(config_of(new, offline_cache))


def test_epochs_and_steps_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="epochs: 3 and max_iters: 10 are both set; leave one out"):
        validation.validate({"trainer": {"epochs": 3, "max_iters": 10}})
