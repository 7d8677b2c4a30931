"""What is held out: a number or a share of the documents, or a file; and an evaluation set of the size asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatrix.trainer.config import DataConfig, RunConfig, from_flags, load, validate
from ablatrix.trainer.data import cache_builder
from ablatrix.trainer.data.batches import Batches, split_lines
from ablatrix.trainer.data.flat_bin import FlatStore
from ablatrix.trainer.data.heldout import HeldOut
from ablatrix.trainer.data.on_the_fly import GrowingStore
from ablatrix.trainer.data.sampling import PADDING
from ablatrix.trainer.data.token_cache import Cache
from ablatrix.trainer.data.token_store import CompleteStore, TokenStore
from ablatrix.trainer.data.tokenizer import find
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import ConfigError, DataError, UserError

BLOCK = 8


def write(path: Path, count: int, word: str = "number") -> Path:
    texts = [f"document {word} {k} " * (1 + k % 5) for k in range(count)]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n")
    return path


def config_of(path: Path, **more: object) -> DataConfig:
    return validate({"data": {"file_path": str(path), "tokenizer": "sample", "block_size": BLOCK, **more}}).data


@pytest.mark.parametrize(("share", "held_out"), [(0.1, 6), (0.001, 1), (0.5, 30), (0.99, 59)])
def test_a_share_of_the_lines(share: float, held_out: int, tmp_path: Path, cache_dir: Path) -> None:
    config = config_of(write(tmp_path / "a.jsonl", 60), test_size=share)
    cache = Cache.of(config, cache_dir)
    cache_builder.prepare(cache)
    growing: TokenStore = GrowingStore(cache)
    assert split_lines(growing, config) == range(60 - held_out)
    whole = open_tokens(config, cache_dir)
    assert isinstance(whole, CompleteStore)
    assert list(HeldOut.of(whole, config).lines) == list(range(60 - held_out, 60))
    for asked in (1, 30):
        pairs = [HeldOut.of(store, config).windows(BLOCK, min(asked, held_out)).pair for store in (growing, whole)]
        np.testing.assert_array_equal(*pairs)


def test_a_share_of_a_file_of_ids(tmp_path: Path, offline_cache: Path) -> None:
    np.arange(1000, dtype="<u2").tofile(tmp_path / "a.bin")
    store = FlatStore(config_of(tmp_path / "a.bin", test_size=0.1), find("sample", offline_cache))
    assert store.count(1) == 12 * BLOCK + 1 and store.count(0) == 1000 - store.count(1)  # 125 windows, 12 held out


def test_a_share_that_leaves_nothing(tmp_path: Path, offline_cache: Path) -> None:
    config = config_of(write(tmp_path / "a.jsonl", 1), test_size=0.5)
    with pytest.raises(DataError, match=r"test_size is 0.5, but the corpus has only 1 document;"):
        split_lines(open_tokens(config, offline_cache), config)


def test_a_file_of_its_own(tmp_path: Path, offline_cache: Path) -> None:
    config = config_of(write(tmp_path / "a.jsonl", 60), test_file=str(write(tmp_path / "b.jsonl", 30, "other")))
    store = open_tokens(config, offline_cache)
    assert split_lines(store, config) == range(60)
    text = HeldOut.open(store, config, offline_cache)
    other = open_tokens(config_of(tmp_path / "b.jsonl", test_size=0), offline_cache)
    total = sum(other.count(k) - 1 for k in range(30))
    windows = text.windows(BLOCK, total)
    assert windows.lines.tolist() == list(range(30)) and windows.scored.sum() == total
    with pytest.raises(DataError, match=rf"b\.jsonl: the held-out text has {total} tokens to score, fewer than"):
        text.windows(BLOCK, total + 1)
    missing = config.model_copy(update={"test_file": str(tmp_path / "c.jsonl")})
    with pytest.raises(DataError, match=r"data.test_file: .* does not exist"):
        HeldOut.open(store, missing, offline_cache)


class Counted(TokenStore):
    """Documents of these lengths; a token is its position in all of them."""

    def __init__(self, counts: list[int]) -> None:
        self.counts, self.name = counts, "made up"
        self.begins = np.concatenate([[0], np.cumsum(counts)])

    def count(self, line: int) -> int:
        return self.counts[line]

    def read(self, line: int, start: int, stop: int) -> np.ndarray:
        return np.arange(self.begins[line] + start, self.begins[line] + stop)


Counted.__abstractmethods__ = frozenset()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=300), st.integers(1, 2000), st.integers(1, 20))
def test_exactly_as_many_tokens_as_asked(counts: list[int], asked: int, block: int) -> None:
    text, total = HeldOut(Counted(counts), range(len(counts)), exact=True), sum(max(0, n - 1) for n in counts)
    if total < asked:
        with pytest.raises(DataError, match=r"fewer than trainer.eval_tokens"):
            text.windows(block, asked)
        return
    windows = text.windows(block, asked)
    scored = windows.y != PADDING
    assert int(scored.sum()) == asked == int(windows.scored.sum())
    assert (windows.y[scored] == windows.x[scored] + 1).all()
    assert len(set(windows.y[scored].tolist())) == asked  # no token twice


def test_windows_are_spread_over_all_documents() -> None:
    windows = HeldOut(Counted([50] * 400), range(400), exact=True).windows(10, 1000)
    assert np.diff(windows.lines).max() <= 7 and windows.lines[0] < 4 and windows.lines[-1] > 394


def config_with(**trainer: object) -> RunConfig:
    return validate({"data": {"file_path": "x"}, "trainer": trainer})


def test_intervals_as_shares_of_the_run() -> None:
    names = ("log_interval", "eval_interval", "ckpt_interval", "sample_interval")
    found = config_with(max_iters=250, **dict.fromkeys(names, "10%")).trainer
    assert [getattr(found, name) for name in names] == [25] * 4
    steps = config_with(max_iters=250, **dict.fromkeys(names, 25))
    assert steps.fingerprint() == config_with(max_iters=250, **dict.fromkeys(names, "10%")).fingerprint()
    assert config_with(max_iters=3, log_interval="1%", eval_interval="0%").trainer.log_interval == 1
    assert config_with(eval_interval="0%").trainer.eval_interval == 0
    assert from_flags(["--trainer.max_iters=80", "--trainer.eval_interval=12.5%"]).trainer.eval_interval == 10


def test_shares_follow_the_steps_of_epochs() -> None:
    config = config_with(epochs=2, batch_size=4, eval_interval="10%", ckpt_interval=7)
    found = config.with_steps(lambda _: 500.0).trainer
    assert (found.max_iters, found.eval_interval, found.ckpt_interval) == (250, 25, 7)


@pytest.mark.parametrize(
    ("tree", "fault"),
    [
        ({"trainer": {"eval_interval": "200%"}}, "trainer.eval_interval: 200% is more than the whole run"),
        ({"trainer": {"eval_interval": "often"}}, "trainer.eval_interval: must be a whole number"),
        ({"trainer": {"log_interval": "0%"}}, "trainer.log_interval: must be"),
        ({"trainer": {"max_iters": "x", "log_interval": "5%"}}, "trainer.max_iters: must be"),
        ({"data": {"test_size": 1.5}}, "data.test_size: 1.5 is neither a number of documents nor a share"),
        ({"data": {"test_size": -1}}, "data.test_size: -1 is neither"),
        ({"data": {"test_size": "1%"}}, "data.test_size: must be"),
    ],
)
def test_faults(tree: dict[str, dict[str, object]], fault: str) -> None:
    with pytest.raises(ConfigError) as error:
        validate(tree)
    assert len(error.value.problems) == 1 and error.value.problems[0].startswith(fault)


def test_a_test_file_and_the_test_split_contradict() -> None:
    config = validate({"data": {"file_path": "x", "test_file": "y", "split": "test"}})
    with pytest.raises(ConfigError, match=r"data.split: test trains on the documents held out"):
        config.resolved(100)


def test_identity() -> None:
    plain = validate({"data": {"file_path": "x"}})
    assert plain.fingerprint() == validate({"data": {"file_path": "x", "test_file": ""}}).fingerprint()
    with_file = [validate({"data": {"file_path": "x", "test_file": "y", "test_size": n}}) for n in (10, 20)]
    assert with_file[0].fingerprint() == with_file[1].fingerprint() != plain.fingerprint()
    moved = validate({"data": {"file_path": "x", "test_file": "z"}})
    assert moved.fingerprint_until(5) == with_file[0].fingerprint_until(5) != plain.fingerprint_until(5)


def test_a_run_with_a_test_file(train: Callable[..., Path], tmp_path: Path) -> None:
    corpus, other = write(tmp_path / "a.jsonl", 60), write(tmp_path / "b.jsonl", 30, "other")
    flags = {"data__file_path": corpus, "data__test_file": other, "trainer__eval_tokens": 100}
    run = train("run", **flags)
    summary = json.loads((run / run_files.SUMMARY).read_text())
    assert summary["val_tokens"] == 100 and summary["corpus"]["documents"] == 60
    config = load(run / run_files.CONFIG)
    store = open_tokens(config.data, Path(config.system.cache_dir))
    assert Batches(store, config.data, 2, 0).lines == range(60)
    train("run", **flags)  # finished already
    write(other, 31)
    with pytest.raises(UserError, match=r"the content of data.test_file \(.*b.jsonl\) has changed since it finished"):
        train("run", **flags)


@pytest.mark.parametrize("eval_tokens", [10, 60, 10**6])
@pytest.mark.parametrize("exact", [False, True])
def test_the_same_tokens_are_scored_behind_a_separator(eval_tokens: int, exact: bool) -> None:
    """As a packed block, a document begins with the separator; scored are the tokens that are scored without it."""
    lengths = [1, 2, 7, 8, 9, 10, 16, 17, 18, 40]
    store = Counted(lengths)
    eval_tokens = min(eval_tokens, sum(lengths) - len(lengths))
    plain = HeldOut(store, range(10), exact).windows(BLOCK, eval_tokens)
    begun = HeldOut(store, range(10), exact, separator=999).windows(BLOCK, eval_tokens)
    for windows in (plain, begun):
        scored = windows.y != PADDING
        np.testing.assert_array_equal(windows.x[scored], windows.y[scored] - 1)
    assert sorted(plain.y[plain.y != PADDING]) == sorted(begun.y[begun.y != PADDING])
    np.testing.assert_array_equal(plain.scored, begun.scored)
    np.testing.assert_array_equal(plain.lines, begun.lines)
    first = np.isin(plain.x[:, 0], store.begins)
    rows = len(plain.x)
    assert (begun.x[:rows][first, 0] == 999).all() and (begun.y[:rows][first, 0] == PADDING).all()
    np.testing.assert_array_equal(begun.x[:rows][first, 1], plain.x[first, 0])
    np.testing.assert_array_equal(begun.x[:rows][~first], plain.x[~first])
    assert ((begun.y[rows:] != PADDING).sum(axis=1) == 1).all()
