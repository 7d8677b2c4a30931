"""Every setting either changes a run's fingerprint or cannot change its loss.csv."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablatrix.trainer.config import RunConfig, from_flags, keys
from tests.support.workspace import without_clock

BASE = {"data.file_path": "data/a.jsonl", "data.tokenizer": "gpt2"}
# (settings beside it, value) for each setting that must change the fingerprint
DECISIVE: dict[str, tuple[dict[str, Any], Any]] = {
    "data.file_path": ({}, "data/b.jsonl"),
    "data.split": ({}, "test"),
    "data.test_size": ({}, 11),
    "data.test_file": ({}, "data/test.jsonl"),
    "data.block_size": ({}, 128),
    "data.text_key": ({}, "content"),
    "data.text_files": ({}, "blocks"),
    "data.sampling": ({}, "stream"),
    "data.document_mask": ({"data.sampling": "packed"}, True),
    "data.separator": ({"data.sampling": "packed"}, 5),
    "data.tokenizer": ({}, "sample"),
    "model.model_type": ({}, "gpt-nano"),
    "model.n_layer": ({}, 2),
    "model.n_head": ({}, 3),
    "model.n_embd": ({}, 96),
    "model.vocab_size": ({}, 60000),
    "model.block_size": ({}, 512),
    **{f"model.{name}_pdrop": ({}, 0.2) for name in ("embd", "resid", "attn")},
    "model.positions": ({}, "alibi"),
    "model.alibi_trainable": ({"model.positions": "alibi"}, True),
    "model.feedforward": ({}, "reglu"),
    "model.norm": ({}, "none"),
    "model.norm_placement": ({}, "post"),
    "model.qk_norm": ({}, True),
    "model.n_kv_head": ({}, 2),
    "model.bias": ({}, False),
    "model.init_from": ({}, "gpt2"),
    **{f"model.{name}": ({}, True) for name in ("tie_embeddings", "swiglu", "rmsnorm", "rope")},
    "trainer.device": ({}, "cpu"),
    "trainer.max_iters": ({}, 2000),
    "trainer.epochs": ({}, 3),
    "trainer.batch_size": ({}, 9),
    "trainer.grad_accum": ({}, 2),  # the order of sums
    "trainer.dtype": ({}, "bfloat16"),
    "trainer.compile": ({}, True),
    "trainer.optimizer": ({}, "sgd"),
    "trainer.learning_rate": ({}, 1e-3),
    "trainer.betas": ({}, (0.8, 0.9)),
    "trainer.momentum": ({"trainer.optimizer": "sgd"}, 0.5),
    "trainer.nesterov": ({"trainer.optimizer": "sgd"}, True),
    "trainer.ns_steps": ({"trainer.optimizer": "muon"}, 6),
    "trainer.beta2_decay": ({"trainer.optimizer": "adafactor"}, -0.7),
    "trainer.update_clip": ({"trainer.optimizer": "adafactor"}, 2.0),
    "trainer.weight_decay": ({}, 0.2),
    "trainer.grad_norm_clip": ({}, 2.0),
    "trainer.warmup_steps": ({}, 5),
    "trainer.schedule": ({}, "linear"),
    "trainer.use_cosine": ({}, True),
    "trainer.min_lr_ratio": ({"trainer.schedule": "cosine"}, 0.2),
    "trainer.decay_steps": ({"trainer.schedule": "wsd"}, 5),
    "trainer.decay_shape": ({"trainer.schedule": "wsd"}, "linear"),
    "trainer.cooldown_steps": ({"trainer.schedule": "infinite"}, 5),
    "trainer.constant_lr_ratio": ({"trainer.schedule": "infinite"}, 0.6),
    "trainer.anneal_steps": ({"trainer.schedule": "infinite"}, 5),
    "trainer.log_interval": ({}, 11),  # which rows there are
    "trainer.eval_interval": ({}, 501),
    "trainer.eval_tokens": ({}, 1000),
    "trainer.eval_blocks": ({}, (128,)),  # a result in summary.json
    "trainer.early_stop_patience": ({}, 3),
    "trainer.early_stop_min_delta": ({"trainer.early_stop_patience": 3}, 0.1),
    "system.seed": ({}, 1),
    "callbacks.custom": ({}, "mine.module:Callback"),
}
NEUTRAL: dict[str, Any] = {
    "data.domain_key": "meta.source",
    "trainer.num_workers": 1,
    "trainer.strategy": "ddp",
    "trainer.pipeline_schedule": "gpipe",
    "trainer.pipeline_microbatches": 2,
    "trainer.pipeline_split": "2,1",
    "trainer.pipeline_stages_per_rank": 2,
    "trainer.activation_checkpointing": True,
    "trainer.ckpt_interval": 7,
    "trainer.sample_interval": 6,
    "trainer.sample_prompt": "Once",
    "trainer.save_total_limit": 5,
    "trainer.save_best": True,
    "trainer.resume": "none",
    "system.work_dir": "elsewhere",
    "system.cache_dir": "cache",
    "callbacks.jsonl": True,
    "callbacks.tensorboard": True,
    "callbacks.wandb": True,
    "callbacks.wandb_project": "other",
    "callbacks.watch_grad_norm": 0,
    "callbacks.watch_loss": 0,
    "info.name": "a",
    "info.description": "b",
    "info.date": "2026-01-01",
    "info.hypothesis": "c",
}


def fingerprint(**settings: Any) -> str:
    flags = {**BASE, **settings}
    config = from_flags([f"--{key}={value}" for key, value in flags.items()])
    return config.with_steps(lambda _: 4000.0).resolved(50257, 50256).fingerprint()


def test_every_setting_is_decided() -> None:
    assert {key for key, _ in keys()} == DECISIVE.keys() | NEUTRAL.keys()
    assert not DECISIVE.keys() & NEUTRAL.keys()


@pytest.mark.parametrize("key", DECISIVE)
def test_decisive(key: str) -> None:
    beside, value = DECISIVE[key]
    assert fingerprint(**{**beside, key: value}) != fingerprint(**beside)


@pytest.mark.parametrize("key", NEUTRAL)
def test_neutral(key: str) -> None:
    assert fingerprint(**{key: NEUTRAL[key]}) == fingerprint()


def test_neutral_ones_leave_the_rows_alone(train: Callable[..., Path], tmp_path: Path) -> None:
    elsewhere = ("strategy", "pipeline", "resume", "work_dir", "cache_dir", "tensorboard", "wandb")  # other tests'
    settings = {key: value for key, value in NEUTRAL.items() if not any(word in key for word in elsewhere)}
    plain = train("plain")
    busy = train("busy", **{key.replace(".", "__"): value for key, value in settings.items()})
    assert without_clock(plain) == without_clock(busy)
    assert (busy / "samples.txt").exists() and (busy / "best.pt").exists()


@pytest.mark.parametrize("spelling", ["./data/a.jsonl", "data//a.jsonl", "data/../data/a.jsonl", "{cwd}/data/a.jsonl",
                                      "{cwd}/./data/a.jsonl", "~/data/a.jsonl", "{link}/data/a.jsonl"])  # fmt: skip
def test_spellings_of_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    workspace, link = tmp_path / "workspace", tmp_path / "link"
    workspace.mkdir()
    link.symlink_to(workspace)
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("HOME", str(workspace))
    expected = fingerprint()
    assert fingerprint(**{"data.file_path": spelling.format(cwd=Path.cwd(), link=link)}) == expected
    workspace.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert fingerprint() == expected, "a moved workspace"


def test_other_spellings() -> None:
    assert fingerprint(**{"trainer.epochs": 2.5}) == fingerprint(**{"trainer.max_iters": 1250}), "of 8 of 4000 rows"
    assert fingerprint(**{"data.tokenizer": "openai-community/gpt2"}) == fingerprint()
    assert fingerprint(**{"trainer.device": "cuda:1"}) == fingerprint(**{"trainer.device": "cuda"})
    nano = fingerprint(**{"model.model_type": "gpt-nano"})
    assert fingerprint(**{"model.n_layer": 3, "model.n_head": 3, "model.n_embd": 48}) == nano
    assert fingerprint(**{"data.file_path": "/data/a.jsonl"}) != fingerprint()
    assert RunConfig().fingerprint() != fingerprint()
