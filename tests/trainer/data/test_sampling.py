"""Stream and packed sampling against their rules in plain Python, and on corpora that are not tokenized yet."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from ablatrix.models.gpt import GPT
from ablatrix.trainer.config import DataConfig, validation
from ablatrix.trainer.data import sampling
from ablatrix.trainer.data.batches import STREAM, Batches, training_text
from ablatrix.trainer.data.corpus_usage import Usage, describe_usage
from ablatrix.trainer.data.sampling import PADDING, Packing, best_fit
from ablatrix.trainer.data.token_store import TokenStore
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import ConfigError, DataError
from tests.support.workspace import without_clock

BLOCK, END = 16, 4095
SAMPLINGS = ("stream", "packed")


@pytest.fixture
def mixed(corpus: Path, tmp_path: Path) -> Path:
    """Documents of many lengths, one over many blocks, and lines that are none."""
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()[:30]]
    texts = [text[: 12 + 37 * k % 300] for k, text in enumerate(texts)] + [" ".join(texts[:6])] + texts[10:20]
    lines = [line for text in texts for line in (json.dumps({"text": text}), "", "no json")]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(lines))
    return path


def config_of(path: Path, **settings: Any) -> DataConfig:
    values = {"tokenizer": "sample", "block_size": BLOCK, "test_size": 4, "separator": END, "file_path": str(path)}
    return DataConfig(**(values | settings))


def documents(store: TokenStore, config: DataConfig) -> list[np.ndarray]:
    """Return the tokens of every training line, none where it is no document."""
    return [store.document(line).astype(np.int64) for line in range(store.first_held_out(config.test_size))]


def drawn_tokens(store: TokenStore, path: Path, held_from: int, seed: int, i: int) -> Iterator[tuple[int, int]]:
    """Yield (line, position) by the rule: a byte of the training lines; again if its line has too few tokens."""
    raw = path.read_bytes().splitlines(keepends=True)
    places = [(line, k) for line in range(held_from) for k in range(len(raw[line]))]
    for word in np.random.Philox(key=[seed, STREAM], counter=[0, 0, i, 0]).random_raw(10_000).tolist():
        line, k = places[int((word >> 11) / 2**53 * len(places))]
        if store.count(line) and k <= store.count(line):
            yield line, k


@pytest.mark.parametrize("i", [0, 1, 1000])
def test_stream_is_windows_of_all_documents_in_a_row(mixed: Path, offline_cache: Path, i: int) -> None:
    config = config_of(mixed, sampling="stream")
    store = open_tokens(config, offline_cache)
    parts = [np.concatenate([[END], tokens]) if len(tokens) else tokens for tokens in documents(store, config)]
    stream, starts = np.concatenate(parts), np.cumsum([0, *map(len, parts)])
    rows = []
    for line, k in drawn_tokens(store, mixed, len(parts), 5, i):
        window = stream[starts[line] + k :][: BLOCK + 1]
        if len(window) == BLOCK + 1:
            rows.append(window)
    x, y = Batches(store, config, 6, seed=5)(i)
    np.testing.assert_array_equal(x, np.array(rows[:6])[:, :-1])
    np.testing.assert_array_equal(y, np.array(rows[:6])[:, 1:])


def test_every_token_of_the_stream_is_drawn_equally_often(mixed: Path, offline_cache: Path) -> None:
    config = config_of(mixed, sampling="stream")
    store = open_tokens(config, offline_cache)
    text = training_text(store, config)
    found = Counter(text.draw(np.random.default_rng(0).random(500_000)))
    lengths = {line: len(tokens) + 1 for line, tokens in enumerate(documents(store, config)) if len(tokens)}
    every = [(line, k) for line, length in lengths.items() for k in range(length)]
    assert found.keys() <= set(every)
    assert stats.chisquare([found[token] for token in every]).pvalue > 1e-3


def plain_best_fit(lengths: list[int], size: int) -> list[list[int]]:
    """Return the lengths by block: longest first, each where the least room is left."""
    blocks: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [block for block in blocks if sum(block) + length <= size]
        target = min(fitting, key=lambda block: size - sum(block), default=None)
        if target is None:
            blocks.append([length])
        else:
            target.append(length)
    return blocks


def test_best_fit_equals_the_plain_rule() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        lengths = rng.integers(1, 33, size=rng.integers(1, 80)).tolist()
        longest_first = sorted(lengths, reverse=True)
        found: dict[int, list[int]] = {}
        for number, length in zip(best_fit(longest_first, 32), longest_first, strict=True):
            found.setdefault(number, []).append(length)
        assert list(found.values()) == plain_best_fit(lengths, 32)


def test_packed_blocks_hold_every_document_once(mixed: Path, offline_cache: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sampling, "GROUP", 64)  # several groups in a small corpus
    config = config_of(mixed, sampling="packed")
    store = open_tokens(config, offline_cache)
    packing = Packing(training_text(store, config), BLOCK)
    assert len(packing.groups) > 3
    blocks = [block for group in packing.groups for block in packing.blocks(group)]
    assert all(sum(piece.length for piece in block) <= BLOCK for block in blocks)
    found: dict[int, dict[int, tuple[list[int], list[int]]]] = {}
    x, y = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    for block in blocks:
        packing.fill(block[0].line, block[0].position, x, y)
        place = 0
        for piece in block:
            part = slice(place, place + piece.length)
            found.setdefault(piece.line, {})[piece.position] = x[part].tolist(), y[part].tolist()
            place += piece.length
        assert (x[place:] == END).all() and (y[place:] == PADDING).all()
    for line, tokens in enumerate(documents(store, config)):
        pieces = [found[line][position] for position in sorted(found[line])] if len(tokens) else []
        inputs, targets = ([token for piece in pieces for token in piece[k]] for k in (0, 1))
        assert inputs == ([END, *tokens] if len(tokens) else [])
        assert targets == ([*tokens, END] if len(tokens) else [])


def test_a_packed_batch_has_the_blocks_of_drawn_tokens(mixed: Path, offline_cache: Path) -> None:
    config = config_of(mixed, sampling="packed")
    store = open_tokens(config, offline_cache)
    held_from = store.first_held_out(config.test_size)
    packing = Packing(training_text(store, config), BLOCK)
    blocks = [block for group in packing.groups for block in packing.blocks(group)]
    tokens = drawn_tokens(store, mixed, held_from, 5, 3)
    x, _ = Batches(store, config, 6, seed=5)(3)
    for row, (line, k) in zip(x, tokens, strict=False):
        (block,) = [b for b in blocks if any(p.line == line and p.position <= k < p.position + p.length for p in b)]
        expected = [t for p in block for t in [END, *store.document(p.line)][p.position : p.position + p.length]]
        np.testing.assert_array_equal(row[: len(expected)], expected)


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_a_resumed_run_equals_one_left_alone(train: Callable[..., Path], mixed: Path, kind: str) -> None:
    settings = {"data__file_path": mixed, "data__sampling": kind}
    whole = train("whole", **settings)
    train("cut", trainer__max_iters=15, **settings)
    resumed = train("cut", trainer__max_iters=24, **settings)
    assert without_clock(resumed) == without_clock(whole)


def test_padding_is_not_in_the_loss(train: Callable[..., Path], write_jsonl: Callable[..., Path]) -> None:
    """At the start every token costs about log(vocabulary): a mean over padding too would be lower."""
    path = write_jsonl([f"the number {k} " * 10 for k in range(40)])  # about 40 tokens: one fits into a block
    run = train(data__file_path=path, data__sampling="packed", data__block_size=64, trainer__max_iters=1)
    (row,) = pd.read_csv(run / "loss.csv").to_dict("records")
    assert abs(row["loss"] - np.log(4096)) < 0.2


def test_what_is_reached_is_reported(mixed: Path, offline_cache: Path) -> None:
    texts = {}
    for kind in ("document", *SAMPLINGS):
        config = config_of(mixed, sampling=kind, block_size=64, separator=None if kind == "document" else END)
        store = open_tokens(config, offline_cache)
        texts[kind] = describe_usage(store, config)
        usage, lengths = Usage.of(store, config), [len(d) for d in documents(store, config) if len(d)]
        reached = [length for length in lengths if length > 64] if kind == "document" else lengths
        assert (usage.usable_documents, usage.usable_tokens) == (len(reached), sum(reached))
    assert "set data.sampling to packed or stream" in texts["document"][1][0]
    assert "windows of 65 tokens of one stream" in texts["stream"][0]
    assert "in blocks of 64 tokens that are" in texts["packed"][0]
    assert not any("never trained on" in text for kind in SAMPLINGS for text in texts[kind][1])


def test_too_little_text_for_one_window(write_jsonl: Callable[..., Path], offline_cache: Path) -> None:
    path = write_jsonl(["hello, world", "the quick brown fox", "held out document"])
    config = config_of(path, sampling="stream", test_size=1, block_size=512)
    store = open_tokens(config, offline_cache)
    total = sum(len(tokens) + 1 for tokens in documents(store, config))
    with pytest.raises(DataError, match=f"{total} tokens to train on.*set data.block_size to at most {total - 1}"):
        Batches(store, config, 2, seed=0)
    Batches(store, config.model_copy(update={"block_size": total - 1}), 2, seed=0)(0)
    Batches(store, config.model_copy(update={"sampling": "packed"}), 2, seed=0)(0)


def test_contradictions(train: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"data.separator: only for data.sampling packed or stream"):
        train(data__separator=5)
    with pytest.raises(ConfigError, match=r"data.separator: 4096 exceeds the last of the 4096 tokens"):
        train(data__separator=4096, data__sampling="stream")
    with pytest.raises(ConfigError, match=r"data.document_mask: only for data.sampling packed or stream"):
        train(data__document_mask=True)
    with pytest.raises(ConfigError, match=r"data.document_mask: mine:Positions cannot restart at each document"):
        train(data__document_mask=True, data__sampling="packed", model__positions="mine:Positions")


def test_a_masked_run_sees_each_document_alone(train: Callable[..., Path], write_jsonl: Callable[..., Path]) -> None:
    """The first loss of packed blocks is the mean over documents that are each in a row of its own."""
    texts = [f"number {k} " * (3 + k % 5) for k in range(24)]
    data = {"data__file_path": write_jsonl(texts), "data__sampling": "packed", "data__test_size": 1}
    model = {"model__n_embd": 16, "data__block_size": 96, "trainer__max_iters": 1}
    model |= {f"model__{name}_pdrop": 0 for name in ("embd", "resid", "attn")}
    masked, plain = (train(str(on), data__document_mask=on, **data, **model) for on in (True, False))
    config = validation.load(masked / "config.json")
    store = open_tokens(config.data, Path(config.system.cache_dir))
    x, y = Batches(store, config.data, 2, config.system.seed)(0)
    network, total = GPT(config.model, seed=config.system.seed), 0.0
    for row, targets in zip(x, y, strict=True):
        begins = [*np.flatnonzero(row == END), len(row)]
        for a, b in itertools.pairwise(begins):
            if (targets[a:b] != PADDING).any():
                alone = [torch.from_numpy(part[None, a:b]) for part in (row, targets)]
                total += network.loss(alone[0], alone[1], divisor=1.0).item()
    first = [pd.read_csv(run / "loss.csv")["loss"][0] for run in (masked, plain)]
    assert abs(first[0] - total / (y != PADDING).sum()) < 1e-5
    assert abs(first[1] - first[0]) > 1e-5
