"""Data that cannot be used, in every format: one sentence, exit code 2, nothing created."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
from pathlib import Path

import numpy as np
import pytest

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import UserError

DOCUMENTS = b"".join(json.dumps({"text": f"document {k} " * 9}).encode() + b"\n" for k in range(300))
HEADER = np.array([20240520, 1, 30000, *[0] * 253], dtype="<i4").tobytes()
LATIN = "un caf\xe9 cr\xe8me et une br\xfbl\xe9e\n\n".encode("latin-1") * 99
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty.jsonl": (b"", "the file is empty"),
    "empty.txt": (b"", "the file is empty"),
    "empty.bin": (b"", "is an empty file; it needs token ids"),
    "inside.jsonl.gz": (gzip.compress(b""), "the file is empty"),
    "cut.jsonl.gz": (gzip.compress(DOCUMENTS)[:-20], "damaged or cut short: .*; copy it again"),
    "cut.jsonl.xz": (lzma.compress(DOCUMENTS)[:-20], "damaged or cut short: .*; copy it again"),
    "cut.jsonl.bz2": (bz2.compress(DOCUMENTS)[:-20], "damaged or cut short: .*; copy it again"),
    "cut.json": (b"[" + DOCUMENTS.replace(b"\n", b",\n")[:-90], "damaged or cut short: element"),
    "cut.bin": (HEADER + bytes(2000), "header says 30,000 tokens, which does not match its size; copy it again"),
    "no.jsonl.gz": (b"this is no gzip\n" * 30, "is plain text that begins with 'this is no gzip', not JSON lines"),
    "no.jsonl.zst": (b"nor is this\0\1\2 Zstandard" * 30, "is a binary file of an unknown kind"),
    "latin.jsonl": (
        b'{"text": "' + LATIN[:20] + b'"}\n',
        r"1 line that is not UTF-8\); .*if the whole file is Latin-1",
    ),
    "latin.txt": (LATIN, "its text is not UTF-8 .*if it is Latin-1: iconv"),
    "utf16.jsonl": (DOCUMENTS.decode().encode("utf-16")[:-1], "its text is not UTF-16-LE .*; copy it again"),
    "key.jsonl": (DOCUMENTS.replace(b'"text"', b'"body"'), r"no key 'text', but 'body': set data.text_key \(.*body"),
    "number.jsonl": (b'{"text": 3}\n' * 99, "99 objects whose text is not a string.*where it is a number"),
    "table.jsonl": (b"text,id\nhello,3\n" * 30, "is a CSV table with the columns text, id; convert it"),
    "page.jsonl": (b"<!DOCTYPE html><title>404</title>" * 9, "is an HTML page .*; download it again"),
    "zeros.jsonl": (bytes(999), "is nothing but zero bytes: .*; fetch it again"),
    "wide.bin": ((np.arange(2000, dtype="<i8") * 50).tobytes(), "not token ids of tokenizer 'sample'"),
    "floats.bin": (np.linspace(0, 1, 2000, dtype="<f4").tobytes(), "not token ids of tokenizer 'sample'"),
    "odd.bin": (b"\1" * 2001, "no multiple of 2 bytes"),
    "folder/README.md": (b"", "is a folder without .jsonl, .json, .parquet, .txt or .bin files"),
}


def refuse(config: DataConfig, cache_dir: Path, message: str) -> None:
    before = sorted(cache_dir.rglob("*"))
    with pytest.raises(UserError, match=message) as refused:
        open_tokens(config, cache_dir)
    assert refused.value.exit_code == 2
    assert len(str(refused.value).splitlines()) == 1
    assert sorted(path for path in cache_dir.rglob("*") if path.name != "tokens") == before


@pytest.mark.parametrize("name", REFUSED)
def test_data_that_cannot_be_used(name: str, tmp_path: Path, cache_dir: Path) -> None:
    content, message = REFUSED[name]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    given = path.parent if name.startswith("folder") else path
    refuse(DataConfig(file_path=str(given), tokenizer="sample", block_size=16, test_size=1), cache_dir, message)


@pytest.mark.parametrize(
    ("file", "tokenizer", "message"),
    [
        ("no/*.jsonl", "sample", "no file matches 'no/"),
        ("data.jsonl", "nobody/nothing", "'nobody/nothing' is not in the offline cache .*warm-cache"),
        ("data.jsonl", "./nowhere", "data.tokenizer: .*nowhere/tokenizer.json: cannot be read: No such file"),
    ],
)
def test_names_of_nothing(
    file: str, tokenizer: str, message: str, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data.jsonl").write_bytes(DOCUMENTS)
    refuse(DataConfig(file_path=file, tokenizer=tokenizer), cache_dir, message)


@pytest.mark.parametrize(
    ("package", "content"), [("pyarrow", b"PAR1" + bytes(99) + b"PAR1"), ("zstandard", b"\x28\xb5\x2f\xfd" + bytes(99))]
)
def test_a_package_that_is_missing(
    package: str, content: bytes, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    (tmp_path / "data").write_bytes(content)
    config = DataConfig(file_path=str(tmp_path / "data"), tokenizer="sample")
    refuse(config, cache_dir, f"needs one more package: .* -m pip install {package}")
