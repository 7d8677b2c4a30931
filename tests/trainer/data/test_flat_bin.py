"""Flat files of token ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ablatrix.orchestrator.study import dotted
from ablatrix.trainer.config import DataConfig, RunConfig, validate
from ablatrix.trainer.data.batches import Batches
from ablatrix.trainer.data.corpus_files import find_files
from ablatrix.trainer.data.corpus_settings import follow_corpus
from ablatrix.trainer.data.corpus_usage import describe_usage
from ablatrix.trainer.data.sampling import PADDING
from ablatrix.trainer.data.token_store import TokenStore
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import DataError
from tests.support.heldout import heldout_windows

BLOCK = 8


def flat(path: Path, ids: np.ndarray, dtype: str) -> Path:
    ids.astype(dtype).tofile(path)
    return path


def config_of(path: Path, test_size: int = 3) -> DataConfig:
    return DataConfig(file_path=str(path), tokenizer="sample", block_size=BLOCK, test_size=test_size)


def all_tokens(store: TokenStore) -> np.ndarray:
    return np.concatenate([store.document(line) for line in range(store.n_lines)])


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("length", [1000, 1001])
def test_flat_files(tmp_path: Path, offline_cache: Path, dtype: str, length: int) -> None:
    ids = (np.arange(length) * 7) % 4096
    config = config_of(flat(tmp_path / "train.bin", ids, dtype))
    store = open_tokens(config, offline_cache)
    assert store.dtype == dtype and store.vocab_size == 4096 and store.complete
    np.testing.assert_array_equal(all_tokens(store), ids)
    held_out = 3 * BLOCK + 1
    x, y = heldout_windows(store, config, 10**6)
    np.testing.assert_array_equal(y.ravel(), ids[-held_out + 1 :])
    np.testing.assert_array_equal(x.ravel(), ids[-held_out:-1])
    assert (y != PADDING).all()
    batches = Batches(store, config, 50, seed=0)
    rows = np.concatenate([np.hstack([x, y[:, -1:]]) for x, y in map(batches, range(40))])
    first = {int(row[0]) for row in rows}
    windows = np.lib.stride_tricks.sliding_window_view(ids[:-held_out], BLOCK + 1)
    assert {row.tobytes() for row in rows} <= {window.tobytes() for window in windows}
    assert len(first) > 700  # of 967 or 968 possible windows, 2,000 draws


def test_flat_files_are_distinguished(tmp_path: Path, offline_cache: Path) -> None:
    ids = np.arange(500) % 4096
    marks = [
        open_tokens(config_of(flat(tmp_path / f"{k}.bin", changed, "uint16")), offline_cache).fingerprint
        for k, changed in enumerate([ids, ids, ids[::-1]])
    ]
    assert marks[0] == marks[1] != marks[2]


def test_nothing_held_out_of_a_flat_file(tmp_path: Path, offline_cache: Path) -> None:
    config = config_of(flat(tmp_path / "train.bin", np.arange(BLOCK + 1), "uint16"), test_size=0)
    store = open_tokens(config, offline_cache)
    x, y = Batches(store, config, 2, seed=0)(0)
    np.testing.assert_array_equal(x, [np.arange(BLOCK)] * 2)
    np.testing.assert_array_equal(y, [np.arange(1, BLOCK + 1)] * 2)
    assert len(heldout_windows(store, config, 100)[0]) == 0


@pytest.mark.parametrize(
    ("length", "fault"),
    [
        (0, "is empty; it must contain token ids"),
        *((length, "too few to hold out|not token ids") for length in (1, 3 * BLOCK + 1, 4 * BLOCK + 1)),
    ],
)
def test_flat_files_that_are_too_small(tmp_path: Path, offline_cache: Path, length: int, fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        open_tokens(config_of(flat(tmp_path / "train.bin", np.zeros(length), "uint16")), offline_cache)


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_flat_files_of_another_tokenizer(tmp_path: Path, offline_cache: Path, dtype: str) -> None:
    path = flat(tmp_path / "train.bin", np.arange(1000) + 40_000, dtype)
    with pytest.raises(DataError, match="not token ids of tokenizer 'sample' as uint16 or uint32"):
        open_tokens(config_of(path), offline_cache)


HEADER = np.zeros(256, dtype="<i4")
HEADER[:3] = 20240520, 1, 1000
IDS = np.arange(1000) * 7 % 4095 + 1


@pytest.mark.parametrize("content", [IDS.astype("<i8").tobytes(), HEADER.tobytes() + IDS.astype("<u2").tobytes()])
def test_64_bit_ids_and_headers(tmp_path: Path, offline_cache: Path, content: bytes) -> None:
    (tmp_path / "train.bin").write_bytes(content)
    store = open_tokens(config_of(tmp_path / "train.bin"), offline_cache)
    np.testing.assert_array_equal(all_tokens(store), IDS)
    np.testing.assert_array_equal(store.read(0, 5, 40), IDS[5:40])
    text, warnings = describe_usage(store, config_of(tmp_path / "train.bin"))
    assert text.endswith(f"train.bin: 975 tokens to train on, stored as {store.dtype.name}") and not warnings


@pytest.mark.parametrize(
    ("given", "used", "held_out"),
    [
        ("train.bin", ["train.bin"], "val.bin"),  # nanoGPT
        ("", ["train.bin"], "val.bin"),
        ("fineweb_train_*.bin", ["fineweb_train_000001.bin", "fineweb_train_000002.bin"], "fineweb_val_000000.bin"),
        ("fineweb_*.bin", ["fineweb_train_000001.bin", "fineweb_train_000002.bin"], "fineweb_val_000000.bin"),
        ("fineweb_train_000001.bin", ["fineweb_train_000001.bin"], "fineweb_val_000000.bin"),  # modded-nanogpt
        ("values.bin", ["values.bin"], ""),
        ("val.bin", ["val.bin"], ""),
    ],
)
def test_the_validation_file_beside_is_held_out(
    tmp_path: Path, offline_cache: Path, given: str, used: list[str], held_out: str
) -> None:
    names = ["train.bin", "val.bin", "values.bin"] if not given.startswith("fineweb") else used
    for name in {*names, "val.bin", held_out or "val.bin"}:
        flat(tmp_path / name, IDS, "uint16")
    settings = {"data.file_path": str(tmp_path / given), "data.block_size": BLOCK, "data.tokenizer": "sample"}
    config = validate(dotted.nest(settings))
    data = follow_corpus(config).data
    assert [path.name for path in find_files(data)] == used
    assert data.test_file == (str(tmp_path / held_out) if held_out else "")
    found = RunConfig.model_validate_json(follow_corpus(config).to_json())
    assert follow_corpus(found) == found, "config.json repeats the run"
    if not held_out:
        return
    text, _ = describe_usage(open_tokens(data, offline_cache), data)
    assert text.endswith(f"; evaluated on {data.test_file}")
    own = validate(dotted.nest({**settings, "data.test_size": 3}))
    assert follow_corpus(own).data == own.data
    text, _ = describe_usage(open_tokens(own.data, offline_cache), own.data)
    assert text.endswith(f"{held_out} is not used: data.test_size holds out documents of the corpus itself")


def test_several_flat_files_are_one(tmp_path: Path, offline_cache: Path) -> None:
    for k, part in enumerate(np.split(IDS, [400, 409, 990])):
        flat(tmp_path / f"train-{k}.bin", part, "uint16")
    config = config_of(tmp_path)
    store = open_tokens(config, offline_cache)
    one = open_tokens(config_of(flat(tmp_path / "all.bin", IDS, "uint16")), offline_cache)
    np.testing.assert_array_equal(all_tokens(store), IDS)
    np.testing.assert_array_equal(store.read(0, 390, 420), IDS[390:420])
    np.testing.assert_array_equal(heldout_windows(store, config, 99), heldout_windows(one, config, 99))
    np.testing.assert_array_equal(Batches(store, config, 8, seed=0)(3), Batches(one, config, 8, seed=0)(3))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (IDS.astype("<i8").tobytes()[:-4], "is cut off within an id"),
        (IDS.astype("<u4").tobytes()[:-2], "is cut off within an id"),
        (IDS.astype("<u2").tobytes()[:-1], "not a multiple of 2 bytes"),
        (HEADER.tobytes() + IDS.astype("<u2").tobytes()[:-2], "header says 1,000 tokens"),
        (np.where(IDS == 8, -100, IDS).astype("<i8").tobytes(), "not token ids of tokenizer"),
        (IDS.astype(">u2").tobytes(), "not token ids of tokenizer"),
        (b"\x93NUMPY\x01\0" + bytes(200), "is a NumPy array"),
        (b"<!DOCTYPE html><title>404</title>" * 9, "is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:7\n", "is a Git LFS pointer"),
    ],
)
def test_flat_files_that_are_something_else(tmp_path: Path, offline_cache: Path, content: bytes, message: str) -> None:
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_tokens(config_of(tmp_path / "train.bin"), offline_cache)


def test_an_id_beyond_the_vocabulary_that_no_sample_saw(tmp_path: Path, offline_cache: Path) -> None:
    """The samples cover a small file; a store opened before the file was spoilt stands for a large one."""
    ids = np.arange(1000) % 4096
    config = config_of(flat(tmp_path / "train.bin", ids, "uint16"))
    batches = Batches(open_tokens(config, offline_cache), config, 64, seed=0)
    with (tmp_path / "train.bin").open("r+b") as file:
        file.seek(2 * 500)
        file.write(b"\xff\xff")
    with pytest.raises(DataError, match="token 65535 at position 500 exceeds the vocabulary"):
        list(map(batches, range(50)))
