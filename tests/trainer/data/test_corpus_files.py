"""The files of a corpus: shards in a folder, patterns, lists; and how much of them is trained on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablatrix.trainer.config import DataConfig, from_flags
from ablatrix.trainer.data import batches, cache_builder, corpus_usage, fingerprints, token_cache
from ablatrix.trainer.data.corpus import describe_skipped
from ablatrix.trainer.data.corpus_files import file_stamp, find_files
from ablatrix.trainer.data.corpus_settings import follow_corpus
from ablatrix.trainer.data.formats import detect
from ablatrix.trainer.data.on_the_fly import GrowingStore
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import DataError
from tests.support.heldout import heldout_windows


def write(path: Path, numbers: range, end: str = "\n") -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps({"text": f"document number {k}, " * (k + 1)}) for k in numbers]
    text = ("\n".join(lines) + end).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with one file, and the same documents in a folder of shards."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "whole.jsonl", range(12))
    write(tmp_path / "shards/part-0.jsonl", range(5), end="")
    write(tmp_path / "shards/part-1.jsonl", range(5, 8))
    write(tmp_path / "shards/part-2.jsonl", range(8, 12), end="")
    (tmp_path / "shards/README.md").write_text("about the shards")
    (tmp_path / "shards/.part-9.jsonl").write_text("half a download")
    write(tmp_path / "packed/part-0.jsonl.gz", range(5), end="")
    write(tmp_path / "packed/part-1.jsonl.gz", range(5, 12))
    return tmp_path


def config_of(path: object, **settings: Any) -> DataConfig:
    return DataConfig(**{"file_path": path, "tokenizer": "sample", "block_size": 8, "test_size": 2, **settings})


PARTS = [f"shards/part-{k}.jsonl" for k in range(3)]


@pytest.mark.parametrize(
    "given", ["shards", "shards/", "shards/*.jsonl", PARTS, "packed", ["shards/part-[01]*", PARTS[2]]]
)
def test_shards_equal_one_file(given: object, shards: Path, offline_cache: Path) -> None:
    whole = open_tokens(config_of("whole.jsonl"), offline_cache)
    store = open_tokens(config_of(given), offline_cache)
    np.testing.assert_array_equal(store.tokens, whole.tokens)
    np.testing.assert_array_equal(store.offsets, whole.offsets)
    (x, y), expected = (
        heldout_windows(store, config_of(given), 64),
        heldout_windows(whole, config_of("x"), 64),
    )
    np.testing.assert_array_equal([x, y], expected)


def test_shards_are_tokenized_while_drawn(shards: Path, offline_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "SHARD_BYTES", (200, 200))
    whole = batches.Batches(open_tokens(config_of("whole.jsonl"), offline_cache), config_of("x"), 8, seed=1)
    cache = token_cache.Cache.of(config_of(PARTS), offline_cache)
    cache_builder.prepare(cache)
    growing = batches.Batches(GrowingStore(cache), config_of("x"), 8, seed=1)
    for i in range(5):
        np.testing.assert_array_equal(growing(i)[0], whole(i)[0])


def test_lists_come_from_flags_and_are_kept(shards: Path) -> None:
    config = from_flags([f"--data.file_path={json.dumps(PARTS)}"])
    assert config.data.file_path == tuple(PARTS)
    absolute = from_flags([f"--data.file_path={json.dumps([str(shards / part) for part in PARTS])}"])
    assert config.fingerprint() == absolute.fingerprint()
    other = from_flags([f"--data.file_path={json.dumps(PARTS[::-1])}"])
    assert config.fingerprint() != other.fingerprint()


def test_the_fingerprint_covers_every_shard(shards: Path) -> None:
    before = fingerprints.of_corpus(config_of("shards"))
    assert before == fingerprints.of_corpus(config_of(PARTS))
    write(shards / PARTS[1], range(6, 8))
    assert before != fingerprints.of_corpus(config_of("shards"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "missing"),
        ("empty", r"is a folder without .*it has nothing"),
        ("mixed", r"contains both .bin and .jsonl files; give a pattern"),
        ("saved", "is an Arrow stream"),
        ("nested", r"is a folder without .*it has inner/"),
        ("shards/*.csv", "no file matches"),
        ("part-{0..3}.jsonl", "only shells expand"),
        ([PARTS[0], PARTS[0]], "is listed twice"),
        ([PARTS[0], "shards/part-*"], "is listed twice"),
        (["whole.jsonl", "x.bin"], "both .bin files of token ids and text files"),
        ("whol.jsonl", r"does not exist \(looked in .*did you mean whole.jsonl"),
        ("WHOLE.jsonl", "did you mean whole.jsonl"),
        ("shard/part-0.jsonl", r"nor does shard \(did you mean shards\?\)"),
        ("broken.jsonl", "is a link to nowhere, which does not exist"),
        ("x" * 300, "cannot read .*: File name too long"),
    ],
)
def test_files_that_cannot_be_found(given: object, message: str, shards: Path) -> None:
    for folder in ("empty", "mixed", "nested/inner", "saved"):
        Path(folder).mkdir(parents=True)
    for name in (
        "mixed/a.bin",
        "mixed/a.jsonl",
        "x.bin",
        "saved/state.json",
    ):
        Path(name).touch()
    Path("saved/data-0.arrow").write_bytes(b"\xff\xff\xff\xff" + bytes(20))
    Path("saved/README.txt").write_text("about the data")
    Path("broken.jsonl").symlink_to("nowhere")
    with pytest.raises(DataError, match=message):
        [(file_stamp(path), detect(path)) for path in find_files(config_of(given))]


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        ("train-00000-of-00002.jsonl train-00001-of-00002.jsonl validation-00000-of-00001.jsonl", 1),  # of the hub
        ("c4-train.0.jsonl c4-validation.0.jsonl other-val.jsonl", 1),
        ("train.jsonl test.jsonl", 1),
        ("train.jsonl dev.jsonl test.jsonl", 1),
        ("train.jsonl extra.jsonl", 0),
        ("val.jsonl test.jsonl", 0),
    ],
)
def test_splits_in_one_folder(names: str, held_out: int, tmp_path: Path) -> None:
    for name in names.split():
        write(tmp_path / name, range(9))
    config = from_flags([f"--data.file_path={tmp_path}"])
    data = follow_corpus(config).data
    training = [path.name for path in find_files(data)]
    assert [name for name in names.split() if "train" in name] == [name for name in training if "train" in name]
    assert isinstance(data.test_file, str) and bool(data.test_file) == bool(held_out)
    assert Path(data.test_file).name == (names.split()[len(training)] if held_out else "")
    as_test_file = config.data.model_copy(update={"test_file": str(tmp_path)}).test_corpus
    if held_out:
        with pytest.raises(DataError, match=r"^data.test_file: .* includes the training split; give only held-out"):
            find_files(as_test_file)


def test_names_with_blanks_brackets_and_foreign_bytes(tmp_path: Path, offline_cache: Path) -> None:
    for name in ("a b.jsonl", "a[1].jsonl"):
        write(tmp_path / name, range(12))
        assert open_tokens(config_of(str(tmp_path / name)), offline_cache).n_documents == 12
    write(tmp_path / "caf\udce9.jsonl", range(12))  # not UTF-8, behind a plain name or in a folder
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "caf\udce9.jsonl")
    assert open_tokens(config_of(str(tmp_path / "link.jsonl")), offline_cache).n_documents == 12
    assert open_tokens(config_of(str(tmp_path / "caf*.jsonl")), offline_cache).n_documents == 12


@pytest.mark.parametrize(
    ("lines", "share"),
    [(3004, "skipped 4 of 3,000 lines (0.1%)"), (404, "of 400 lines (1%)"), (80_004, "of 80,000 lines (under 0.1%)")],
)
def test_a_small_share_of_skipped_lines_is_not_0(lines: int, share: str) -> None:
    text = describe_skipped("a.jsonl", lines, {"not_json": 4, "blank": 4}, {})
    assert f"{share}: 4 lines that are not JSON" in text


def test_skipped_lines_are_reported_with_the_first_one(shards: Path, offline_cache: Path) -> None:
    with (shards / PARTS[1]).open("a") as file:
        file.write('{"text": "a raw \t tab"}\n' * 4 + '{"Text": "another key", "id": 3}\n\n')
    store = open_tokens(config_of("shards"), offline_cache)
    assert store.skipped == {"not_json": 4, "no_text_key": 1, "blank": 1}
    _, (warning,) = corpus_usage.describe_usage(store, config_of("shards"))
    assert "skipped 5 of 17 lines (29%): 4 lines that are not JSON (first: line 4 of part-1.jsonl: " in warning
    assert "1 object without the text key (first: line 8 of part-1.jsonl, which has 'Text', 'id')" in warning


def test_documents_that_no_window_fits_into_are_reported(shards: Path, offline_cache: Path) -> None:
    config = config_of("whole.jsonl", block_size=40)
    store = open_tokens(config, offline_cache)
    lengths = np.diff(store.offsets)[:-2]
    usage = corpus_usage.Usage.of(store, config)
    assert (usage.documents, usage.tokens) == (10, lengths.sum())
    assert (usage.usable_documents, usage.usable_tokens) == ((lengths > 40).sum(), lengths[lengths > 40].sum())
    text, warnings = corpus_usage.describe_usage(store, config)
    assert f"10 documents of {lengths.sum():,} tokens" in text and "fill a window of 41 tokens" in text
    assert bool(warnings) == (usage.usable_tokens < 0.9 * usage.tokens or usage.usable_documents < 9)
    longest = config_of("whole.jsonl", block_size=int(lengths.max()) - 1)
    assert (
        "are never trained on; set data.sampling to packed or stream"
        in corpus_usage.describe_usage(store, longest)[1][0]
    )
