"""Reading JSONL: what is a document, what is skipped and counted, what is refused."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data import corpus as reading
from ablatrix.trainer.data.formats import TextFile
from ablatrix.trainer.data.text_source import Source
from ablatrix.trainer.data.token_store import TokenStore
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import DataError

LONG = json.dumps({"text": "a document that is long enough"})


def opened(path: Path, cache: Path, **settings: Any) -> TokenStore:
    return open_tokens(DataConfig(file_path=str(path), tokenizer="sample", **settings), cache)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("", "blank"),
        (" \t ", "blank"),
        ("not json", "not_json"),
        ('{"text": "cut in the mid', "not_json"),
        ("[1, 2]", "not_object"),
        ('"a string of some length"', "not_object"),
        ('{"Text": "a document that is long enough"}', "no_text_key"),
        ('{"text": null}', "not_string"),
        ('{"text": ["a document that is long enough"]}', "not_string"),
        ('{"text": ""}', "too_short"),
        ('{"text": "123456789"}', "too_short"),
    ],
)
def test_skipped_lines_are_counted_by_reason(line: str, reason: str, tmp_path: Path, offline_cache: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{LONG}\n{line}\n{line}\n{LONG}\n")
    store = opened(path, offline_cache)
    assert store.skipped == {reason: 2}
    assert (store.n_documents, store.n_lines) == (2, 4)
    assert [len(store.document(line)) > 0 for line in range(4)] == [True, False, False, True]


@pytest.mark.parametrize(
    ("content", "documents", "skipped"),
    [
        ('{"text": "1234567890"}\n{"text": "éééééééééé"}\n{"text": "ééééééééé"}', 2, {"too_short": 1}),
        (f"{LONG}\n{LONG}\n{LONG[:20]}", 2, {"not_json": 1}),
        (f"{LONG}\n{LONG}", 2, {}),
        (f"\ufeff{LONG}\r\n{LONG}\r\n", 2, {}),
    ],
    ids=["ten characters", "half a last line", "no last newline", "Windows"],
)
def test_documents_are_counted(
    content: str, documents: int, skipped: dict[str, int], tmp_path: Path, offline_cache: Path
) -> None:
    (tmp_path / "data.jsonl").write_bytes(content.encode())
    store = opened(tmp_path / "data.jsonl", offline_cache)
    assert (store.n_documents, store.skipped) == (documents, skipped)


def test_another_text_key(tmp_path: Path, offline_cache: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"content": "a document that is long enough", "text": 3}\n')
    assert opened(path, offline_cache, text_key="content").n_documents == 1


def test_an_empty_file(tmp_path: Path, offline_cache: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.touch()
    with pytest.raises(DataError, match=r"data.jsonl: the file is empty"):
        opened(path, offline_cache)


def test_a_missing_key_names_the_keys_that_are_there(tmp_path: Path, offline_cache: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"content": "a document that is long enough", "id": 1}\n{"body": "x"}\nnot json\n')
    with pytest.raises(DataError, match=r"no key 'text', but 'content', 'id', 'body': set data.text_key") as caught:
        opened(path, offline_cache)
    assert "2 objects without the text key" in str(caught.value)
    assert "1 line that is not JSON" in str(caught.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_lines_that_are_not_utf8_are_skipped_and_counted(tmp_path: Path, offline_cache: Path, encoding: str) -> None:
    path = tmp_path / "data.jsonl"
    bad = json.dumps({"text": "ein Satz über Öl, lang genug"}, ensure_ascii=False)
    path.write_bytes(f"{LONG}\n".encode() * 2 + f"{bad}\n".encode(encoding))
    store = opened(path, offline_cache)
    assert store.n_documents == 2 and store.skipped["not_utf8"] >= 1
    byte = "0xfc" if encoding == "latin-1" else "0xff"
    assert store.first_skipped["not_utf8"].startswith(f"line 3, byte {byte}; ")
    path.write_bytes(f"{bad}\n".encode("latin-1") * 3)
    with pytest.raises(
        DataError, match=r"no documents found \(3 lines that are not UTF-8\); line 1, byte 0xfc; .*iconv -f"
    ):
        opened(path, offline_cache)


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_no_such_file(tmp_path: Path, offline_cache: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"data.file_path:? .*(does not exist|is a folder)"):
        opened(tmp_path / name, offline_cache)


def test_half_surrogate_pairs_become_replacement_characters(tmp_path: Path, offline_cache: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "0123456789 \\ud83d\\ude00 \\ud800 x"}\n{"text": "0123456789 \U0001f600 \ufffd x"}\n')
    store = opened(path, offline_cache)
    np.testing.assert_array_equal(store.document(0), store.document(1))


def pack(kind: str, raw: bytes) -> bytes:
    if kind == "gzip":
        return gzip.compress(raw)
    zstandard = pytest.importorskip("zstandard", reason="the package zstandard is not installed")
    return bytes(zstandard.ZstdCompressor(write_checksum=True).compress(raw))


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_compressed_files_give_the_same_tokens(corpus: Path, tmp_path: Path, offline_cache: Path, kind: str) -> None:
    path, raw = tmp_path / "data.jsonl", corpus.read_bytes()
    path.write_bytes(pack(kind, raw[:100_000]) + pack(kind, raw[100_000:]))  # two members, as from cat
    packed, plain = opened(path, offline_cache), opened(corpus, offline_cache)
    np.testing.assert_array_equal(packed.tokens, plain.tokens)
    np.testing.assert_array_equal(packed.offsets, plain.offsets)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "cut between", "flip"])
def test_damaged_compressed_files(corpus: Path, tmp_path: Path, offline_cache: Path, kind: str, damage: str) -> None:
    raw = bytearray(pack(kind, corpus.read_bytes()))
    if damage == "flip":
        raw[len(raw) // 2] ^= 0xFF
    contents = {"cut": raw[:-2000], "cut between": raw + raw[:3], "flip": raw}
    (tmp_path / "data.jsonl").write_bytes(bytes(contents[damage]))
    with pytest.raises(DataError, match="corrupt or truncated"):
        opened(tmp_path / "data.jsonl", offline_cache)


def test_zstandard_without_the_package(tmp_path: Path, offline_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    (tmp_path / "data.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    with pytest.raises(Exception, match="pip install zstandard") as caught:
        opened(tmp_path / "data.jsonl.zst", offline_cache)
    assert getattr(caught.value, "exit_code", None) == 2


@given(st.binary(max_size=300).map(lambda raw: raw.replace(b"a", b"\n")), st.integers(1, 64))
def test_the_index_finds_every_line(tmp_path_factory: pytest.TempPathFactory, raw: bytes, chunk: int) -> None:
    path = tmp_path_factory.mktemp("lines") / "file"
    path.write_bytes(raw)
    parts: list[np.ndarray] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK", chunk)
        count = reading.scan_lines(Source([TextFile(path)]), parts.append, lambda _: None)
    starts = np.concatenate(parts)
    lines = reading.Lines(Source([TextFile(path)]), starts, "text")
    expected = re.findall(rb"[^\n]*\n|[^\n]+", raw)
    assert [raw[starts[k] : starts[k + 1]] for k in range(len(lines))] == expected
    assert count == len(lines) == len(expected)
