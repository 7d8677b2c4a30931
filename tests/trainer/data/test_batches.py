"""Batches, prefetching and held-out windows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data.batches import STREAM, Batches, prefetch
from ablatrix.trainer.data.sampling import PADDING
from ablatrix.trainer.data.token_store import TokenStore
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import DataError
from tests.support.heldout import heldout_windows

BLOCK = 16
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def config(corpus: Path) -> DataConfig:
    return DataConfig(file_path=str(corpus), tokenizer="sample", block_size=BLOCK, test_size=5)


@pytest.fixture(scope="module")
def store(config: DataConfig, offline_cache: Path) -> TokenStore:
    return open_tokens(config, offline_cache)


def contains(document: np.ndarray, window: np.ndarray) -> bool:
    views = np.lib.stride_tricks.sliding_window_view(document, len(window))
    return bool((views == window).all(axis=1).any())


def test_a_batch_depends_on_seed_and_step_only(store: TokenStore, config: DataConfig) -> None:
    one, other = Batches(store, config, 4, seed=1), Batches(store, config, 4, seed=1)
    expected = [one(i) for i in range(20)]
    for i in (19, 3, 3, 11, 0):
        np.testing.assert_array_equal(other(i), expected[i])
    with ThreadPoolExecutor(4) as pool:
        for i, got in enumerate(pool.map(one, range(20))):
            np.testing.assert_array_equal(got, expected[i])


def test_other_seeds_and_steps_give_other_batches(store: TokenStore, config: DataConfig) -> None:
    batches = [Batches(store, config, 4, seed)(i)[0].tobytes() for seed in (0, 1, 2**63 - 1) for i in range(10)]
    assert len(set(batches)) == 30


def test_shapes_types_and_the_shift(store: TokenStore, config: DataConfig) -> None:
    x, y = Batches(store, config, 3, seed=0)(0)
    assert x.shape == y.shape == (3, BLOCK)
    assert x.dtype == y.dtype == np.int64
    assert x.flags.c_contiguous and y.flags.c_contiguous
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])


def test_split_test_draws_from_the_held_out_documents(store: TokenStore, config: DataConfig) -> None:
    documents = [store.document(line) for line in range(store.n_lines - 5, store.n_lines)]
    x, y = Batches(store, config.model_copy(update={"split": "test"}), 32, seed=7)(0)
    for window in np.concatenate([x, y[:, -1:]], axis=1):
        assert any(contains(d, window) for d in documents if len(d) > BLOCK)


def test_equals_a_plain_rejection_loop(store: TokenStore, config: DataConfig) -> None:
    """The rule in its simplest form: two words a draw; again if the document is too short."""
    lines, length = store.n_lines - config.test_size, BLOCK + 1
    for i in (0, 1, 1000):
        words = iter(np.random.Philox(key=[5, STREAM], counter=[0, 0, i, 0]).random_raw(10_000).tolist())
        rows: list[np.ndarray] = []
        while len(rows) < 6:
            u, v = ((next(words) >> 11) / 2**53 for _ in range(2))
            document = store.document(int(u * lines))
            if len(document) >= length:
                start = int(v * (len(document) - length + 1))
                rows.append(document[start : start + length])
        x, y = Batches(store, config, 6, seed=5)(i)
        np.testing.assert_array_equal(x, np.array(rows)[:, :-1])
        np.testing.assert_array_equal(y, np.array(rows)[:, 1:])


def test_no_document_long_enough(write_jsonl: Write, offline_cache: Path) -> None:
    path = write_jsonl(["hello, world", "the quick brown fox", "held out document"])
    config = DataConfig(file_path=str(path), tokenizer="sample", block_size=512, test_size=1)
    store = open_tokens(config, offline_cache)
    longest = max(len(store.document(line)) for line in (0, 1))
    with pytest.raises(DataError, match=f"longest document has {longest} tokens.*block_size to at most {longest - 1}"):
        Batches(store, config, 2, seed=0)
    Batches(store, config.model_copy(update={"block_size": longest - 1}), 2, seed=0)(0)


@pytest.mark.parametrize("test_size", [3, 4, 10**9])
def test_everything_held_out(write_jsonl: Write, offline_cache: Path, test_size: int) -> None:
    path = write_jsonl(["hello, world", "no", "the quick brown fox", "held out document"])
    config = DataConfig(file_path=str(path), tokenizer="sample", block_size=1, test_size=test_size)
    store = open_tokens(config, offline_cache)
    with pytest.raises(DataError, match="only 3 documents; set it to at most 2"):
        Batches(store, config, 2, seed=0)
    with pytest.raises(DataError, match="only 3 documents"):
        heldout_windows(store, config, 100)


def test_split_test_without_held_out_documents(store: TokenStore, config: DataConfig) -> None:
    with pytest.raises(DataError, match=r"data.test_size is 0"):
        Batches(store, config.model_copy(update={"split": "test", "test_size": 0}), 2, seed=0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_prefetch_keeps_order(store: TokenStore, config: DataConfig, workers: int) -> None:
    batches = Batches(store, config, 2, seed=0)
    got = list(prefetch(batches, 5, 30, workers))
    assert len(got) == 25
    for i, pair in enumerate(got, start=5):
        np.testing.assert_array_equal(pair, batches(i))


@pytest.mark.parametrize("workers", [0, 2])
def test_prefetch_hands_on_errors_and_ends_its_threads(workers: int) -> None:
    def fails(i: int) -> tuple[np.ndarray, np.ndarray]:
        if i == 3:
            raise DataError("line 4 is not UTF-8")
        return np.zeros(1), np.zeros(1)

    threads = threading.active_count()
    stream = prefetch(fails, 0, 100, workers)
    for _ in range(3):
        next(stream)
    with pytest.raises(DataError, match="line 4"):
        next(stream)
    assert threading.active_count() == threads


def test_prefetch_left_early_ends_its_threads(store: TokenStore, config: DataConfig) -> None:
    threads = threading.active_count()
    stream = prefetch(Batches(store, config, 2, seed=0), 0, 1000, 2)
    next(stream)
    stream.close()
    assert threading.active_count() == threads


def test_held_out_windows_score_every_token_once(store: TokenStore, config: DataConfig) -> None:
    x, y = heldout_windows(store, config, eval_tokens=10**9)
    held_out = [store.document(line) for line in range(store.n_lines - 5, store.n_lines)]
    np.testing.assert_array_equal(y[y != PADDING], np.concatenate([d[1:] for d in held_out]))
    row = 0
    for document in held_out:
        for start in range(0, len(document) - 1, BLOCK):
            n = min(BLOCK, len(document) - 1 - start)
            np.testing.assert_array_equal(x[row, :n], document[start : start + n])
            assert (y[row, n:] == PADDING).all() and (x[row] >= 0).all()
            row += 1
    assert row == len(x)


@settings(max_examples=50, deadline=None)
@given(limit=st.integers(1, 3000))
def test_a_limited_evaluation_is_a_choice_of_the_full_one(store: TokenStore, config: DataConfig, limit: int) -> None:
    full_x, full_y = heldout_windows(store, config, eval_tokens=10**9)
    x, y = heldout_windows(store, config, limit)
    total = int((full_y != PADDING).sum())
    assert min(limit, total) - BLOCK * (1 + len(full_x) // 8) < (y != PADDING).sum() <= limit
    rows = [int(np.flatnonzero((full_x == row).all(axis=1))[0]) for row in x]
    assert all((full_y[r, :limit] == y[k, :limit]).all() for k, r in enumerate(rows))
    if len(rows) > 2:  # evenly spaced, from the beginning to the end
        assert rows == sorted(set(rows)) and np.ptp(np.diff(rows)) <= 1


def test_no_held_out_documents_no_windows(store: TokenStore, config: DataConfig) -> None:
    x, y = heldout_windows(store, config.model_copy(update={"test_size": 0}), 1000)
    assert x.shape == y.shape == (0, BLOCK)
