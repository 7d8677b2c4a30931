"""Large files: batches while the token cache is being built, which must be those of the complete cache."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data import cache_builder, on_the_fly, shards, token_cache, tokens
from ablatrix.trainer.data.batches import Batches, prefetch
from ablatrix.trainer.data.on_the_fly import GrowingStore
from ablatrix.trainer.data.token_cache import Cache
from ablatrix.trainer.data.token_store import CompleteStore
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import DataError
from tests.support.heldout import heldout_windows
from tests.support.waiting import PATIENCE, wait_for

ROOT = Path(__file__).parents[3]
BLOCK = 32


@pytest.fixture
def mixed(corpus: Path, tmp_path: Path) -> Path:
    """Documents long and short, and every kind of line that is none, the last ones among the held-out documents."""
    good = corpus.read_text().splitlines()
    bad = [
        "",
        "no json",
        "[1]",
        '{"n": 1}',
        '{"text": 5}',
        '{"text": "short"}',
        '{"text": "long enough, but no block"}',
    ]
    lines = [line for k, document in enumerate(good) for line in (document, bad[k % 7])]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(lines))
    return path


def config_of(path: Path, **settings: int | str) -> DataConfig:
    return DataConfig(
        **({"tokenizer": "sample", "block_size": BLOCK, "test_size": 6, "file_path": str(path)} | settings)
    )


def growing_store(config: DataConfig, cache_dir: Path) -> GrowingStore:
    cache = Cache.of(config, cache_dir)
    cache_builder.prepare(cache)
    return GrowingStore(cache)


def finish(config: DataConfig, cache_dir: Path) -> CompleteStore:
    return CompleteStore(Cache.of(config, cache_dir).folder, cache_builder.build(config, cache_dir, workers=1))


@pytest.mark.parametrize(
    "settings",
    [{"split": "train"}, {"split": "test"}, *({"sampling": kind, "separator": 4095} for kind in ("stream", "packed"))],
    ids=lambda settings: next(iter(settings.values())),
)
def test_the_same_batches_at_every_stage(
    mixed: Path, cache_dir: Path, offline_cache: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tokenized; some shards there; complete while the run goes on."""
    monkeypatch.setattr(token_cache, "SHARD_BYTES", (3000, 3000))
    monkeypatch.setattr(on_the_fly, "LOOK_SECONDS", 0.0)
    config = config_of(mixed, **settings)
    reference = finish(config, offline_cache)
    expected = [Batches(reference, config, 5, seed=11)(i) for i in range(30)]
    windows = heldout_windows(reference, config, 700)

    store = growing_store(config, cache_dir)
    assert (store.complete, store.fingerprint, store.vocab_size) == (False, reference.fingerprint, 4096)
    batches = Batches(store, config, 5, seed=11)
    for i in range(10):
        np.testing.assert_array_equal(batches(i), expected[i])
    np.testing.assert_array_equal(heldout_windows(store, config, 700), windows)

    cache = Cache.of(config, cache_dir)
    for shard in range(0, cache.shard_count(), 2):
        lines = cache.lines()
        shards.encode_shard(lines, cache.shard_lines(lines, shard), store._encoder).write(cache.shard_file(shard))
    store._kept.clear()
    for i, pair in enumerate(prefetch(batches, 10, 20, workers=3), start=10):
        np.testing.assert_array_equal(pair, expected[i])
    assert not store.complete
    store._kept.clear()
    np.testing.assert_array_equal(heldout_windows(store, config, 700), windows)

    finish(config, cache_dir)
    for i in range(20, 30):
        np.testing.assert_array_equal(batches(i), expected[i])
    assert store.complete and store.skipped == reference.skipped and store.n_documents == reference.n_documents
    np.testing.assert_array_equal(heldout_windows(store, config, 700), windows)


def test_little_memory_gives_the_same_batches(mixed: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(mixed)
    roomy = Batches(growing_store(config, cache_dir), config, 5, seed=1)
    expected = [roomy(i) for i in range(10)]
    monkeypatch.setattr(on_the_fly, "KEPT_BYTES", 3000)
    store = growing_store(config, cache_dir)
    for i, pair in enumerate(prefetch(Batches(store, config, 5, seed=1), 0, 10, workers=4)):
        np.testing.assert_array_equal(pair, expected[i])
    assert len(store._kept._documents) < 12


def test_only_what_is_drawn_is_tokenized(mixed: Path, cache_dir: Path) -> None:
    config = config_of(mixed, test_size=1)
    store = growing_store(config, cache_dir)
    Batches(store, config, 2, seed=0)(0)
    assert len(store._kept._documents) < 30 < store.n_lines


@pytest.mark.parametrize("test_size", [0, 1, 59])
def test_the_same_documents_are_held_out(mixed: Path, cache_dir: Path, offline_cache: Path, test_size: int) -> None:
    config = config_of(mixed, test_size=test_size)
    found = [s.first_held_out(test_size) for s in (growing_store(config, cache_dir), finish(config, offline_cache))]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"test_size": 105}, "test_size is 105, but the corpus has only 68 documents; set it to at most 67"),
        ({"block_size": 100_000}, "the longest document has [0-9]+ tokens, but data.block_size 100000 needs 100001"),
        ({"text_key": "body"}, "no key 'body', but 'text', 'meta', 'n': set data.text_key"),
        ({"split": "test", "test_size": 0}, r"data.test_size is 0"),
    ],
)
def test_errors_are_those_of_the_complete_cache(
    mixed: Path, cache_dir: Path, settings: dict[str, int | str], message: str
) -> None:
    config = config_of(mixed, **settings)
    with pytest.raises(DataError, match=message) as grown:
        Batches(growing_store(config, cache_dir), config, 2, seed=0)
    with pytest.raises(DataError) as complete:
        Batches(finish(config, cache_dir), config, 2, seed=0)
    texts = [str(error.value).replace(str(mixed), "FILE") for error in (grown, complete)]
    assert texts[0].partition(" (")[0] == texts[1].partition(" (")[0]


def test_a_line_that_is_not_utf8_is_never_drawn(mixed: Path, cache_dir: Path) -> None:
    lines = mixed.read_bytes().splitlines(True)
    mixed.write_bytes(
        b"".join(lines[:50]) + b'{"text": "\xe9t\xe9, long enough for a window"}\n' * 20 + b"".join(lines[50:])
    )
    config = config_of(mixed)
    batches = Batches(growing_store(config, cache_dir), config, 8, seed=0)
    growing = [batches(i) for i in range(20)]
    complete = Batches(open_tokens(config, cache_dir), config, 8, seed=0)
    for i, drawn in enumerate(growing):
        np.testing.assert_array_equal(complete(i), drawn)


def test_workers_complete_the_cache_while_the_run_goes_on(
    mixed: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokens, "WAIT_BYTES", 0)
    monkeypatch.setattr(on_the_fly, "LOOK_SECONDS", 0.05)
    config = config_of(mixed)
    store = open_tokens(config, cache_dir)
    assert isinstance(store, GrowingStore) and "in the background" in capsys.readouterr().err
    batches = Batches(store, config, 4, seed=0)
    before = [batches(i) for i in range(5)]
    wait_for(lambda: store.complete)
    for i in range(5):
        np.testing.assert_array_equal(batches(i), before[i])
    assert type(open_tokens(config, cache_dir)) is CompleteStore


def test_workers_end_with_the_store(mixed: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start() -> list[subprocess.Popen[bytes]]:
        started.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        return list(started)

    config = config_of(mixed)
    cache = Cache.of(config, cache_dir)
    cache_builder.prepare(cache)
    store = GrowingStore(cache, start)
    Batches(store, config, 2, seed=0)(0)
    assert len(started) == 1 and started[0].poll() is None
    del store
    gc.collect()
    assert started[0].poll() is not None


def test_a_failing_worker_does_not_stop_the_run(
    mixed: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cache cannot be completed, the run can."""
    monkeypatch.setattr(on_the_fly, "LOOK_SECONDS", 0.02)
    config = config_of(mixed, split="test")
    unknown = config.model_copy(update={"tokenizer": "removed"})
    cache = Cache.of(config, cache_dir)
    cache_builder.prepare(cache)
    store = GrowingStore(cache, lambda: cache_builder.start_background(unknown, cache_dir))
    batches = Batches(store, config, 2, seed=0)
    said = [""]

    def has_said_so() -> bool:
        batches(0)
        said.append(capsys.readouterr().err)
        return "this job builds no token cache: " in "".join(said)

    wait_for(has_said_so)
    assert "'removed'" in "".join(said)


def test_one_machine_does_not_run_more_workers_than_asked_for(mixed: Path, cache_dir: Path) -> None:
    config = config_of(mixed)
    cache = Cache.of(config, cache_dir)
    cache_builder.prepare(cache)
    with cache_builder.Claims(cache.claims) as claims:
        for place in cache_builder.worker_slots(1):
            assert claims.acquire(place)
        worker = cache_builder.start_worker(config, cache_dir, limit=1)
        assert worker.wait(timeout=PATIENCE) == cache_builder.EXIT_ENOUGH
    cache_builder.stop_worker(worker)


LIMITED = """
import json, sys
from pathlib import Path
from ablatrix.trainer.data import batches as data, on_the_fly as growing
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.data.heldout import HeldOut
from ablatrix.trainer.config import DataConfig
growing._Builders.look = lambda self: None  # measured alone
config, cache_dir = DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])
def peak(): return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024  # MiB
before = peak()
store = open_tokens(config, cache_dir)
batches = data.Batches(store, config, 8, 0)
for i in range(200): batches(i)
HeldOut.of(store, config).windows(config.block_size, 4096)
print(json.dumps([type(store).__name__, before, peak()]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(corpus: Path, tmp_path: Path, cache_dir: Path) -> None:
    """A sparse file: 2 GB of documents of which the disk holds little, under a limit on address space."""
    path = tmp_path / "large.jsonl"
    text = corpus.read_bytes()
    with path.open("wb") as file:
        for part in range(200):
            file.write(text)
            file.seek((part + 1) * 10_000_000 - 1)
            file.write(b"\n")  # a line of zero bytes: not JSON, skipped
        file.write(text)
    code = ["bash", "-c", 'ulimit -v 1500000; exec "$@"', "-", sys.executable, "-c", LIMITED]
    arguments = [config_of(path).model_dump_json(), str(cache_dir)]
    done = subprocess.run([*code, *arguments], cwd=ROOT, capture_output=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr.decode()
    kind, before, after = json.loads(done.stdout)
    assert kind == "GrowingStore" and after - before < 300
