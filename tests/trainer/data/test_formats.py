"""Corpus files are read by their content; what holds no JSON lines is named, with what to do about it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sys
import tarfile
import zipfile
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from ablatrix.orchestrator.study.load import load_experiment
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.orchestrator.submit import data_preflight
from ablatrix.trainer.config import DataConfig, from_flags
from ablatrix.trainer.data import corpus_usage, decoders
from ablatrix.trainer.data.corpus import Lines
from ablatrix.trainer.data.formats import detect
from ablatrix.trainer.data.text_source import Source
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import ConfigError, DataError, UserError

DOCUMENTS = [{"text": f"document {k}, long enough: é – 😀"} for k in range(40)]
PLAIN = "".join(json.dumps(d, ensure_ascii=False) + "\n" for d in DOCUMENTS)
RAW = PLAIN.encode()


def texts(path: Path, text_key: str = "text") -> list[str | None]:
    """What the lines of a file hold, None for those that are no document."""
    source = Source([detect(path)])
    raw = source.read(0, 1 << 30)
    starts = np.cumsum([0, *map(len, raw.splitlines(keepends=True))])
    lines = Lines(source, starts, text_key)
    return [lines.text(k)[0] for k in range(len(lines))]


def zstd(raw: bytes, **settings: int) -> bytes:
    zstandard = pytest.importorskip("zstandard", reason="the package zstandard is not installed")
    parameters = zstandard.ZstdCompressionParameters.from_level(3, **settings)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return bytes(packer.compress(raw) + packer.flush())


SKIPPABLE = b"\x52\x2a\x4d\x18\x04\0\0\0abcd"
READABLE = {
    "crlf": PLAIN.replace("\n", "\r\n").encode(),
    "old Mac line ends": PLAIN.replace("\n", "\r").encode(),
    "byte order mark": b"\xef\xbb\xbf" + RAW,
    "utf-16": PLAIN.encode("utf-16"),
    "utf-16, big-endian": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "utf-16 with crlf": PLAIN.replace("\n", "\r\n").encode("utf-16"),
    "array": json.dumps(DOCUMENTS).encode(),
    "indented array": json.dumps(DOCUMENTS, indent=2).encode(),
    "array in lines": b"[\n" + RAW.replace(b"}\n", b"},\n").rstrip(b",\n") + b"\n]\n",
    "array in utf-16": json.dumps(DOCUMENTS).encode("utf-16"),
    "two arrays": json.dumps(DOCUMENTS[:9]).encode() + b"\n" + json.dumps(DOCUMENTS[9:]).encode(),
    "no line breaks": b"".join(json.dumps(d).encode() for d in DOCUMENTS),
    "blanks for line breaks": b" ".join(json.dumps(d).encode() for d in DOCUMENTS),
    "commas after lines": RAW.replace(b"}\n", b"},\n"),
    "indented objects": "\n".join(json.dumps(d, indent=1) for d in DOCUMENTS).encode(),
    "gzip": gzip.compress(RAW),
    "gzip twice": gzip.compress(gzip.compress(RAW)),
    "gzip of an array": gzip.compress(json.dumps(DOCUMENTS).encode()),
    "xz": lzma.compress(RAW),
    "lzma": lzma.compress(RAW, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress(RAW[:999]) + bz2.compress(RAW[999:]),
}


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data"])
def test_files_are_read_by_their_content(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(READABLE[kind])
    assert texts(tmp_path / name) == [d["text"] for d in DOCUMENTS]


def test_zstandard_frames_of_all_kinds(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    packed = SKIPPABLE + zstd(RAW[:999], window_log=28) + zstd(b"") + SKIPPABLE + zstd(RAW[999:])
    path.write_bytes(packed)
    assert texts(path) == [d["text"] for d in DOCUMENTS]


def parquet(rows: list[dict[str, object]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason="the package pyarrow is not installed")
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=7)
    return file.getvalue()


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**d, "meta": {"n": k}, "raw": b"\xff", "day": date(2026, 1, 2)} for k, d in enumerate(DOCUMENTS)]
    (tmp_path / "x.parquet").write_bytes(parquet([*rows, {"text": None}]))
    assert texts(tmp_path / "x.parquet") == [*(d["text"] for d in DOCUMENTS), None]
    (tmp_path / "cut.parquet").write_bytes(parquet(rows)[:-20])
    with pytest.raises(DataError, match="corrupt or truncated"):
        texts(tmp_path / "cut.parquet")


def test_parquet_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(50) + b"PAR1")
    with pytest.raises(UserError, match=r"reading Parquet needs one more package: .*pip install pyarrow"):
        texts(tmp_path / "x.parquet")


PARAGRAPHS = ['"Said" the first,\nand more.', "[2] The second block é", "  indented, the third one", "the last of them"]
TEXT = "\n\n" + "\n \t\n\n".join(PARAGRAPHS) + "\n"


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
@pytest.mark.parametrize("raw", [TEXT.encode(), TEXT.replace("\n", "\r\n").encode(), TEXT.encode("utf-16")])
def test_plain_text(raw: bytes, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "CHUNK", chunk)
    for name, content in (("x.txt", raw), ("x.txt.gz", gzip.compress(raw))):
        (tmp_path / name).write_bytes(content)
        assert texts(tmp_path / name) == PARAGRAPHS
        (whole,) = (source.read(0, 1 << 20) for source in [Source([detect(tmp_path / name, whole_texts=True)])])
        assert json.loads(whole)["text"].replace("\r", "") == TEXT.strip("\n")


def test_plain_texts_are_documents_or_blocks(tmp_path: Path, offline_cache: Path) -> None:
    for k in range(4):
        (tmp_path / f"book{k}.txt").write_text(f"Book {k}, a title\n\nThe first chapter of it.\n")
    single = {"file_path": str(tmp_path / "book0.txt")}
    several = {"file_path": str(tmp_path)}
    for settings, count in (
        (single, 2), (several, 4), ({**several, "text_files": "blocks"}, 8), ({**single, "text_files": "documents"}, 1)
    ):  # fmt: skip
        config = DataConfig.model_validate({"tokenizer": "sample", **settings})
        assert open_tokens(config, offline_cache).n_documents == count


def test_json_lines_may_be_called_txt(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(RAW)
    assert texts(tmp_path / "x.txt") == [d["text"] for d in DOCUMENTS]


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_an_array_is_read_in_pieces(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "CHUNK", chunk)
    values = [{"text": 'a "quoted" [text], {with} all\\ é \n marks'}, {"text": "x" * 200, "n": [1.5e3, {"a": None}]}]
    (tmp_path / "x.json").write_bytes(json.dumps(values, indent=3, ensure_ascii=False).encode())
    assert texts(tmp_path / "x.json") == [value["text"] for value in values]


def archive(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as packed:
            packed.writestr("x.jsonl", RAW)
    else:
        with tarfile.open(fileobj=file, mode=kind) as packed_tar:
            member = tarfile.TarInfo("x.jsonl")
            member.size = len(RAW)
            packed_tar.addfile(member, io.BytesIO(RAW))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"7" * 64 + b"\nsize 12345678\n"
REFUSED = {
    "LFS pointer": (LFS, " is a Git LFS pointer, .*git lfs pull"),
    "web page": (b"\n<!DOCTYPE html><title>Sign in</title>", " is an HTML page that begins with '<!DOCTYPE html>"),
    "packed web page": (gzip.compress(b"<html>404</html>"), " is an HTML page"),
    "XML": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', " is an XML page"),
    "Arrow": (b"ARROW1\0\0" + bytes(50), " is an Arrow .* file"),
    "Arrow stream": (b"\xff\xff\xff\xff\x10\0\0\0" + bytes(50), " is an Arrow stream.*datasets"),
    "SQLite": (b"SQLite format 3\0" + bytes(80), " is an SQLite database; .*sqlite3 -json"),
    "NumPy": (b"\x93NUMPY\x01\0" + bytes(80), " is a NumPy array"),
    "pickle": (pickle.dumps(DOCUMENTS), " is a Python pickle; it is not loaded"),
    "ZIP": (archive("zip"), r" is a ZIP archive .*\(unzip "),
    "tar": (archive("w"), r" is a tar archive; unpack it \(tar -xf "),
    "tar.gz": (archive("w:gz"), " is a tar archive"),
    "CSV": (b"id,text\n1,abc\n2,def\n", " is a CSV table with the columns id, text; convert it: .*read_csv"),
    "TSV": (b"id\ttext\n1\tabc\n", " is a TSV table .*sep="),
    "plain text": (b"It was a dark night.\nThe end.\n", " is plain text that begins with 'It was a dark night.'"),
    "zeros": (bytes(5000), " is nothing but zero bytes"),
    "noise": (bytes(range(200, 0, -1)) * 9 + b"\0", " is a binary file of an unknown kind"),
    "cut array": (json.dumps(DOCUMENTS).encode()[:-60], ": corrupt or truncated: element 40 of its JSON array"),
    "open array": (
        json.dumps(DOCUMENTS).encode()[:-1],
        ": corrupt or truncated: its JSON array is not closed after element 40",
    ),
    "cut xz": (lzma.compress(RAW * 9)[:-30], ": corrupt or truncated"),
    "cut bzip2": (bz2.compress(RAW * 9)[:-30], ": corrupt or truncated: .*; copy it again"),
    "array in Latin-1": (
        '[{"text": "Öl"}]'.encode("latin-1"),
        ": not UTF-8 text .*iconv",
    ),
    "cut utf-16": (PLAIN.encode("utf-16")[:-1], ": not UTF-16"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_named_with_advice(kind: str, tmp_path: Path) -> None:
    content, message = REFUSED[kind]
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=rf"data.jsonl{message}") as refused:
        texts(tmp_path / "data.jsonl")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["array", "utf-16", "gzip", "old Mac line ends"])
def test_whole_files_are_not_called_cut_off(kind: str, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(READABLE[kind])
    data_preflight.check_file(tmp_path / "data.jsonl")


def test_a_last_line_is_called_cut_off_only_among_whole_ones(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(RAW + b'{"text": "cut in the mid')
    with pytest.raises(UserError, match="the last line is cut off"):
        data_preflight.check_file(path)
    path.write_text("\n".join(map(repr, DOCUMENTS)))
    data_preflight.check_file(path)


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ({"Text": "a document, long enough", "id": "a"}, r"'Text', 'id': set data.text_key \(probably Text\)"),
        ({"id": "7", "content": "a document, long enough"}, r"set data.text_key \(probably content\)"),
        ({"meta": {"text": "a document, long enough"}}, "the text seems to be meta.text: jq"),
        ({"data": [{"text": "a document, long enough"}]}, "a list under 'data': jq"),
        ({"text": ["a", "b"]}, r"line 1, where it is a list; join its parts"),
        ({"text": {"0": "a", "1": "b"}}, r"line 1, where it is an object; a table by columns, .* orient='records'"),
        ({"text": None}, "line 1, where it is null"),
        ({"turns": ["a"], "id": 3}, "'turns', 'id', none of them with a string value"),
        ("a document, long enough", "line 1, where it is a string; make objects of them"),
    ],
)
def test_files_without_documents_say_what_they_hold(
    line: object, advice: str, tmp_path: Path, offline_cache: Path
) -> None:
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    config = DataConfig(file_path=str(tmp_path / "data.jsonl"), tokenizer="sample")
    with pytest.raises(DataError, match=advice):
        open_tokens(config, offline_cache)
    with pytest.raises(DataError, match=advice):
        corpus_usage.check_beginning(config)


def test_python_notation_is_named(tmp_path: Path, offline_cache: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n".join(map(repr, DOCUMENTS)))
    with pytest.raises(DataError, match=r"line 1: it is in Python's notation"):
        open_tokens(DataConfig(file_path=str(tmp_path / "data.jsonl"), tokenizer="sample"), offline_cache)


def test_a_large_corpus_is_checked_at_its_beginning(
    tmp_path: Path, offline_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_preflight, "SMALL_CORPUS", 0)
    path = tmp_path / "data.jsonl"
    path.write_bytes(RAW + b"not json\n" * 20)
    flags = [f"--data.file_path={path}", "--data.tokenizer=sample", f"--system.cache_dir={offline_cache}"]
    run = Run("baseline", 1, (), {}, from_flags(flags), "")
    (tmp_path / "s.yaml").write_text(f"name: s\nbase:\n  data: {{tokenizer: sample, file_path: {path}}}\n")
    loaded = load_experiment(tmp_path / "s.yaml")
    (warning, *_) = data_preflight.check_corpora(loaded, [run])
    assert "skipped 20 of 60 lines (33%): 20 lines that are not JSON (first: line 41: " in warning
    path.write_bytes(RAW.replace(b'"text"', b'"body"'))
    with pytest.raises(ConfigError) as refused:
        data_preflight.check_corpora(loaded, [run])
    (finding,) = refused.value.problems
    assert finding.startswith(f"{tmp_path}/s.yaml:3: {path} (its beginning): ")
    assert "there is no key 'text', but 'body': set data.text_key (probably body)" in finding
