"""The token cache when several jobs build it, when they are killed, and when its files are not what they were."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data import cache_builder, shards, token_cache
from ablatrix.trainer.data.corpus import Lines
from ablatrix.trainer.data.encoder import Encoder
from ablatrix.trainer.data.shard_claims import Owner
from ablatrix.trainer.data.token_cache import Cache
from ablatrix.trainer.data.token_store import CompleteStore
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import DataError, RunError
from tests.support.waiting import PATIENCE

ROOT = Path(__file__).parents[3]
Write = Callable[..., Path]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many shards in a small file."""
    monkeypatch.setattr(token_cache, "SHARD_BYTES", (2000, 2000))


def config_of(path: Path) -> DataConfig:
    return DataConfig(file_path=str(path), tokenizer="sample", block_size=8, test_size=2)


def open_complete(config: DataConfig, cache_dir: Path) -> CompleteStore:
    store = open_tokens(config, cache_dir)
    assert isinstance(store, CompleteStore)
    return store


def content(folder: Path) -> dict[str, str]:
    """Hashes of what a complete cache consists of."""
    names = ("tokens.bin", "offsets.npy", "lines.u64", "index.json")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def build_in_process(config: DataConfig, cache_dir: Path, workers: int = 1) -> subprocess.Popen[bytes]:
    code = (
        "import sys; from pathlib import Path; from ablatrix.trainer.data import cache_builder; "
        "from ablatrix.trainer.config import DataConfig; "
        "cache_builder.build(DataConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))"
    )
    command = [sys.executable, "-c", code, config.model_dump_json(), str(cache_dir), str(workers)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)


@pytest.fixture(scope="session")
def big(shared_dir: Path, corpus: Path) -> Path:
    """A corpus of several shards of the real size, 6 MB; half a second of work."""
    path = shared_dir / f"big-{os.getpid()}.jsonl"
    path.write_bytes(corpus.read_bytes() * 20)
    return path


def test_built_once_then_only_opened(corpus: Path, cache_dir: Path) -> None:
    store = open_complete(config_of(corpus), cache_dir)
    (folder,) = (cache_dir / "tokens").iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = open_complete(config_of(corpus).model_copy(update={"block_size": 99, "test_size": 0}), cache_dir)
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert again.fingerprint == store.fingerprint
    assert sorted(path.name for path in before) == ["index.json", "lines.u64", "meta.json", "offsets.npy", "tokens.bin"]


def test_meta_tells_what_is_there(corpus: Path, cache_dir: Path) -> None:
    store = open_complete(config_of(corpus), cache_dir)
    meta = json.loads((store.folder / "meta.json").read_text())
    assert (meta["documents"], meta["lines"], meta["vocab_size"], meta["dtype"]) == (60, 60, 4096, "uint16")
    assert meta["tokens"] == len(store.tokens) == store.offsets[-1]
    assert meta["tokens_sha256"] == hashlib.sha256(store.tokens.tobytes()).hexdigest()


def test_shards_do_not_show(corpus: Path, cache_dir: Path, offline_cache: Path, small_shards: None) -> None:
    many, one = open_complete(config_of(corpus), cache_dir), open_complete(config_of(corpus), offline_cache)
    assert json.loads((many.folder / "index.json").read_text())["shard_bytes"] == 2000  # most documents are longer
    np.testing.assert_array_equal(many.tokens, one.tokens)
    np.testing.assert_array_equal(many.offsets, one.offsets)
    assert many.fingerprint == one.fingerprint


def test_a_changed_file_is_read_again(write_jsonl: Write, cache_dir: Path) -> None:
    config = config_of(write_jsonl(["a document that is long enough"] * 3))
    first = open_complete(config, cache_dir)
    write_jsonl(["b document that is long enough"] * 3)
    os.utime(config.file_path, ns=(1, 1))
    second = open_complete(config, cache_dir)
    assert first.fingerprint != second.fingerprint and first.folder != second.folder
    os.utime(config.file_path, ns=(2, 2))  # the same text again: another cache, the same fingerprint
    third = open_complete(config, cache_dir)
    assert third.fingerprint == second.fingerprint and third.folder != second.folder


def test_a_file_that_changes_while_it_is_read(
    corpus: Path, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "growing.jsonl"
    path.write_bytes(corpus.read_bytes())
    encode = shards.encode_shard

    def grow_and_encode(*arguments: object) -> shards.Shard:
        with path.open("a") as file:
            file.write('{"text": "one more document"}\n')
        return encode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "encode_shard", grow_and_encode)
    with pytest.raises(DataError, match="changed while it was being read"):
        open_complete(config_of(path), cache_dir)
    assert not list(cache_dir.rglob("meta.json"))


@pytest.mark.parametrize("damage", ["cut tokens", "cut offsets", "no tokens", "torn meta", "no meta"])
def test_damaged_caches_are_not_believed(corpus: Path, cache_dir: Path, damage: str) -> None:
    folder = open_complete(config_of(corpus), cache_dir).folder
    whole = content(folder)
    what, name = damage.split()
    path = folder / {"tokens": "tokens.bin", "offsets": "offsets.npy", "meta": "meta.json"}[name]
    if what == "no":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    open_complete(config_of(corpus), cache_dir)
    assert content(folder) == whole


@pytest.mark.slow
def test_several_jobs_build_one_cache(big: Path, cache_dir: Path, offline_cache: Path) -> None:
    jobs = [build_in_process(config_of(big), cache_dir, workers=1 + k % 2) for k in range(4)]
    errors = [job.communicate()[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * 4, errors
    (folder,) = (cache_dir / "tokens").iterdir()
    assert content(folder) == content(open_complete(config_of(big), offline_cache).folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*content(folder), "meta.json"])


@pytest.mark.parametrize("attempt", range(3))
@pytest.mark.slow
def test_killed_builds_leave_nothing_in_the_way(big: Path, cache_dir: Path, offline_cache: Path, attempt: int) -> None:
    """kill -9 at moments spread over the whole build, workers included; then a build that is left alone."""
    moment = random.Random(attempt)
    for _ in range(4):
        job = build_in_process(config_of(big), cache_dir, workers=2)
        time.sleep(moment.uniform(0.2, 0.9))
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
    claims = Cache.of(config_of(big), cache_dir).claims
    owners = [Owner.model_validate_json(text) for path in claims.glob("*") if (text := path.read_text())]
    assert all(owner.is_dead() for owner in owners)  # they are recognized, not waited for
    store = open_complete(config_of(big), cache_dir)
    assert content(store.folder) == content(open_complete(config_of(big), offline_cache).folder)
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".")]


def test_shards_of_a_killed_build_are_used(
    corpus: Path, cache_dir: Path, small_shards: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, made, limit = shards.encode_shard, list[int](), 10

    def count_and_encode(lines: Lines, numbers: range, encoder: Encoder) -> shards.Shard:
        if len(made) > limit:
            raise KeyboardInterrupt
        made.extend(numbers)
        return encode(lines, numbers, encoder)

    monkeypatch.setattr(shards, "encode_shard", count_and_encode)
    with pytest.raises(KeyboardInterrupt):
        cache_builder.build(config_of(corpus), cache_dir, workers=1)
    limit = 60
    cache_builder.build(config_of(corpus), cache_dir, workers=1)
    assert made == list(range(60))  # every line once, over both attempts


@pytest.mark.parametrize("damage", ["empty", "cut", "no head"])
def test_shards_that_a_power_cut_spoilt_are_made_again(
    corpus: Path, cache_dir: Path, offline_cache: Path, small_shards: None, damage: str
) -> None:
    config = config_of(corpus)
    cache = Cache.of(config, cache_dir)
    cache_builder.prepare(cache)
    lines, encoder = cache.lines(), Encoder(cache.tokenizer)
    for number in range(cache.shard_count()):
        shards.encode_shard(lines, cache.shard_lines(lines, number), encoder).write(cache.shard_file(number))
    victim = cache.shard_file(cache.shard_count() // 2)
    victim.write_bytes({"empty": b"", "cut": victim.read_bytes()[:-1], "no head": b"\0" * 500}[damage])
    cache_builder.build(config, cache_dir, workers=1)
    built, expected = open_complete(config, cache_dir), open_complete(config, offline_cache)
    np.testing.assert_array_equal(built.tokens, expected.tokens)


def test_an_error_in_the_file_reaches_every_job(tmp_path: Path, cache_dir: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "short"}\n' * 1200)
    jobs = [build_in_process(config_of(path), cache_dir, workers=2) for _ in range(2)]
    assert all(b"no documents found" in job.communicate()[1] for job in jobs)
    assert all(job.returncode for job in jobs)
    with pytest.raises(DataError, match="1,200 documents under 10 characters"):
        open_complete(config_of(path), cache_dir)


@pytest.fixture
def read_only(cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that this user may read only (root may write everywhere), and a working folder of the user's own."""
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not Path(path).is_relative_to(cache_dir) and access(path, mode)
    )
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return cache_dir


def test_tokens_are_kept_elsewhere_if_the_cache_is_read_only(
    corpus: Path, read_only: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_complete(config_of(corpus), read_only)
    assert store.folder.parent == Path(".cache/ablatrix/tokens").absolute()
    assert not (read_only / "tokens").exists()
    assert "; tokens are kept in" in caplog.text
    caplog.clear()
    open_complete(config_of(corpus), read_only)
    assert not caplog.text


def test_a_half_written_read_only_cache_is_left_alone(corpus: Path, read_only: Path) -> None:
    half = Cache.of(config_of(corpus), read_only).folder.name
    (read_only / "tokens" / half / "shards").mkdir(parents=True)
    assert open_complete(config_of(corpus), read_only).folder == Path(".cache/ablatrix/tokens").absolute() / half


def test_tokens_in_a_read_only_cache_are_used(corpus: Path, read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: True)
        built = open_complete(config_of(corpus), read_only)
    assert open_complete(config_of(corpus), read_only).folder == built.folder
    assert not Path(".cache").exists()


def test_a_cache_folder_that_cannot_be_made(corpus: Path, cache_dir: Path) -> None:
    (cache_dir / "tokens").touch()
    with pytest.raises(RunError, match=r"cannot create .*; set system.cache_dir"):
        open_complete(config_of(corpus), cache_dir)


def test_a_worker_ends_with_its_parent(big: Path, cache_dir: Path) -> None:
    worker = cache_builder.start_worker(config_of(big), cache_dir, limit=1)
    assert worker.stdin is not None
    worker.stdin.close()
    assert worker.wait(timeout=PATIENCE) == 1
    assert Cache.of(config_of(big), cache_dir).meta() is None
