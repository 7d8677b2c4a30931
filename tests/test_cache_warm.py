"""cache_warm.py, as a person calls it: against a hub on loopback that the real client downloads from, then without."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data import embedded_sample, tokenizer, warm_cache
from ablatrix.trainer.data.data_sets import choose_files
from ablatrix.trainer.data.encoder import Encoder
from ablatrix.trainer.data.manifest import TOKENIZER_FILES, read_manifest
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import OfflineCacheError
from tests.support.hub_server import COMMIT, HubServer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PRIVATE = ("HF_", "HUGGINGFACE", "TRANSFORMERS", "ABLATRIX", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")


def cache_warm(*arguments: object, hub: str = "", home: Path) -> subprocess.CompletedProcess[str]:
    """Run the command with a home of its own; in this process if it needs no hub."""
    words = ["--cache-dir", str(home / "cache"), *map(str, arguments)]
    if hub:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
        environ |= {"HF_ENDPOINT": hub, "HF_HOME": str(home / "hf"), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, str(ROOT / "cache_warm.py"), *words]
        return subprocess.run(command, cwd=home, env=environ, capture_output=True, text=True, check=False)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(home), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = warm_cache.main(words)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def gpt2_files(offline_cache: Path) -> dict[str, bytes]:
    """Files of a GPT-2 style tokenizer, as a repository of the hub has them."""
    return {name: (offline_cache / "tokenizers" / "sample" / name).read_bytes() for name in TOKENIZER_FILES}


@pytest.fixture
def hub(gpt2_files: dict[str, bytes], corpus: Path) -> Iterator[HubServer]:
    repositories = {
        "openai-community/gpt2": gpt2_files,
        "owner/small": {name: gpt2_files[name] for name in ("vocab.json", "merges.txt")},
        "owner/new-style": {name: gpt2_files[name] for name in ("tokenizer.json", "tokenizer_config.json")},
        "owner/other": {"config.json": b"{}"},
        "datasets/owner/texts": {"sub/train.jsonl": corpus.read_bytes()},
        "datasets/owner/shards": {
            "README.md": b"about",
            "dataset_infos.json": b"{}",
            "data/train-00000-of-00002.jsonl": corpus.read_bytes(),
            "data/train-00001-of-00002.jsonl": corpus.read_bytes() + b"\n",
            "data/validation-00000-of-00001.jsonl": corpus.read_bytes(),
            "other/train-00000-of-00002.jsonl": b"{}",
            "other/train.txt": b"text",
        },
    }
    with HubServer(repositories, large=("sub/train.jsonl",)) as server:
        yield server


def without_network(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run where there is no network at all, if this machine allows that; else where opening a connection fails."""
    isolated = ["unshare", "--user", "--map-root-user", "--net"]
    if (
        shutil.which("unshare")
        and subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode == 0
    ):
        command = [*isolated, *command]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


LOAD = """
import sys
from pathlib import Path
from ablatrix.trainer.data.tokenizer_check import refuse_connections
refuse_connections()
from ablatrix.trainer.data import tokenizer
loaded = tokenizer.load(sys.argv[1], Path(sys.argv[2]))
print(loaded("def main() -> None: pass<|endoftext|>")["input_ids"])
"""


def test_download_then_load_without_a_network(hub: HubServer, tmp_path: Path, offline_cache: Path) -> None:
    done = cache_warm(hub=hub.url, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tokenizer gpt2: 4096 tokens, loads offline" in done.stdout
    hub.stop()
    loaded = without_network([sys.executable, "-c", LOAD, "gpt2", str(tmp_path / "cache")], cwd=ROOT)
    assert loaded.returncode == 0, loaded.stderr
    expected = Encoder(tokenizer.find("sample", offline_cache)).encode("def main() -> None: pass<|endoftext|>")
    assert json.loads(loaded.stdout) == expected.tolist()
    entry = read_manifest(tmp_path / "cache").tokenizers["gpt2"]
    assert (entry.source, entry.revision, entry.commit) == ("hub:openai-community/gpt2", "main", COMMIT)
    assert entry.files.keys() == set(TOKENIZER_FILES)
    folder = tmp_path / "cache" / "tokenizers" / "gpt2"
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert [path.name for path in folder.parent.iterdir()] == ["gpt2"]  # no staging folder is left


def test_the_second_call_downloads_nothing(hub: HubServer, tmp_path: Path) -> None:
    assert cache_warm("--tokenizer", "owner/small", hub=hub.url, home=tmp_path).returncode == 0
    count = len(hub.requests)
    manifest = (tmp_path / "cache" / "manifest.json").read_bytes()
    again = cache_warm("--tokenizer", "owner/small", hub=hub.url, home=tmp_path)
    assert again.returncode == 0 and "already in" in again.stdout and "verified" in again.stdout
    assert len(hub.requests) == count and (tmp_path / "cache" / "manifest.json").read_bytes() == manifest
    victim = tmp_path / "cache" / "tokenizers" / "owner--small" / "merges.txt"
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + b"x")  # same size: only the hash tells
    assert cache_warm("--tokenizer", "owner/small", hub=hub.url, home=tmp_path).returncode == 0
    assert len(hub.requests) > count and victim.read_bytes() == content


@pytest.mark.parametrize("repo", ["owner/small", "owner/new-style"])
def test_missing_files_are_made_from_the_others(
    hub: HubServer, tmp_path: Path, repo: str, gpt2_files: dict[str, bytes]
) -> None:
    done = cache_warm("--tokenizer", repo, hub=hub.url, home=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tokenizer.find(repo, tmp_path / "cache").folder
    for name in TOKENIZER_FILES:
        assert (folder / name).read_bytes() == gpt2_files[name]


def test_a_data_file(hub: HubServer, tmp_path: Path, corpus: Path, gpt2_files: dict[str, bytes]) -> None:
    arguments = ("--from", folder_of(tmp_path / "source", gpt2_files), "--data", "owner/texts:sub/train.jsonl")
    done = cache_warm(*arguments, hub=hub.url, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "train.jsonl").read_bytes() == corpus.read_bytes()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["train.jsonl"]
    entry = read_manifest(tmp_path / "cache").data["owner/texts:sub/train.jsonl"]
    assert (entry.commit, entry.size) == (COMMIT, corpus.stat().st_size)
    count = len(hub.requests)
    again = cache_warm(*arguments, hub=hub.url, home=tmp_path)
    assert "data owner/texts:sub/train.jsonl: already in" in again.stdout and len(hub.requests) == count


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("wrong hash", "openai-community/gpt2: merges.txt: the file differs from what the hub reports"),
        ("truncated", "openai-community/gpt2: merges.txt: the download was cut short"),
        (503, "answered with status 503; try again later"),
    ],
)
def test_faults_of_the_hub(hub: HubServer, tmp_path: Path, fault: str | int, message: str) -> None:
    hub.faults["merges.txt"] = fault
    done = cache_warm(hub=hub.url, home=tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert message in done.stderr
    with pytest.raises(OfflineCacheError):
        tokenizer.find("gpt2", tmp_path / "cache")
    if fault == "wrong hash":  # nothing of it is kept
        hub.faults.clear()
        assert cache_warm(hub=hub.url, home=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message", "asks"),
    [
        (["--tokenizer", "owner/nothing"], "owner/nothing: no such repository at http://127", True),
        (["--tokenizer", "owner/other"], "owner/other: no fast-tokenizer files found", True),
        (["--revision", "v2"], "no such revision", True),
        (["--tokenizer", "../x"], "'../x' is not a tokenizer's name", False),
        (["--data", "owner/texts:"], "write REPO:FILE", False),
        (["--from", "nowhere"], "--from nowhere: no such folder", False),
    ],
)
def test_mistakes_get_one_line(hub: HubServer, tmp_path: Path, arguments: list[str], message: str, asks: bool) -> None:
    done = cache_warm(*arguments, hub=hub.url if asks else "", home=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_a_data_set_of_several_files(
    hub: HubServer, tmp_path: Path, corpus: Path, gpt2_files: dict[str, bytes]
) -> None:
    arguments = ("--from", folder_of(tmp_path / "source", gpt2_files), "--data", "owner/shards:data/*.jsonl")
    done = cache_warm(*arguments, hub=hub.url, home=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "data" / "shards"
    assert "3 files in data/shards; set data.file_path to this folder" in done.stdout
    names = ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "validation-00000-of-00001.jsonl"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert (folder / names[1]).read_bytes() == corpus.read_bytes() + b"\n"
    entries = read_manifest(tmp_path / "cache").data
    assert {entry.commit for entry in entries.values()} == {COMMIT}
    assert sorted(entries) == [f"owner/shards:data/{name}" for name in names]
    (folder / names[0]).write_bytes(b"spoilt")
    count = len(hub.requests)
    again = cache_warm(*arguments, hub=hub.url, home=tmp_path)
    assert again.stdout.count("already in") == 3  # the tokenizer and two files
    assert (folder / names[0]).read_bytes() == corpus.read_bytes()
    assert any(names[0] in path for _, path in hub.requests[count:])
    assert not any(names[1] in path for _, path in hub.requests[count:])
    twice = cache_warm(*arguments[:2], "--data", "owner/shards", hub=hub.url, home=tmp_path)
    assert twice.returncode == 2 and "several files are called train-00000-of-00002.jsonl" in twice.stderr
    none = cache_warm(*arguments[:2], "--data", "owner/shards:none/*", hub=hub.url, home=tmp_path)
    assert none.returncode == 2 and "owner/shards:none/*: the data set has no such data file" in none.stderr


@pytest.mark.parametrize(
    ("pattern", "chosen"),
    [
        ("", ["data/a.parquet", "data/b.parquet"]),
        ("data", ["data/a.parquet", "data/b.parquet"]),
        ("data/", ["data/a.parquet", "data/b.parquet"]),
        ("*b*", ["data/b.parquet"]),
        ("*.txt", ["TinyStories-train.txt", "TinyStories-valid.txt"]),
        ("dat", []),
    ],
)
def test_which_files_of_a_data_set(pattern: str, chosen: list[str]) -> None:
    files = ["README.md", "TinyStories-train.txt", "TinyStories-valid.txt", "data/a.parquet", "data/b.parquet"]
    assert choose_files([*files, "dataset_infos.json"], pattern) == chosen


def test_without_a_connection(tmp_path: Path) -> None:
    done = cache_warm(hub="http://127.0.0.1:9", home=tmp_path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "no connection to http://127.0.0.1:9" in done.stderr and "--from DIR" in done.stderr


def test_forbidden_downloads_are_named(hub: HubServer, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "cache_warm.py"), "--cache-dir", str(tmp_path)]
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.url}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "HF_HUB_OFFLINE is set" in done.stderr and hub.requests == []


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


def test_from_a_folder(tmp_path: Path, gpt2_files: dict[str, bytes]) -> None:
    source = folder_of(tmp_path / "source", {name: gpt2_files[name] for name in ("vocab.json", "merges.txt")})
    done = cache_warm("--from", source, home=tmp_path)
    assert done.returncode == 0, done.stderr
    info = tokenizer.find("gpt2", tmp_path / "cache")
    assert (info.vocab_size, info.bulk) == (4096, "tiktoken")
    entry = read_manifest(tmp_path / "cache").tokenizers["gpt2"]
    assert entry.source == str(source) and entry.versions["transformers"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no vocab.json with merges.txt, and no tokenizer.json"),
        ({"vocab.json": b"{"}, "no vocab.json with merges.txt, and no tokenizer.json"),
        ({"vocab.json": b"{", "merges.txt": b""}, "its files are not a tokenizer's"),
        ({"tokenizer.json": b"[]"}, "its files are not a tokenizer's"),
        ({"tokenizer.json": b'{"model": {"type": "Unigram", "vocab": []}}'}, "does not load offline"),
        ({"vocab.json": b'{"a": 0, "b": 1}', "merges.txt": b"a b\n"}, "does not load offline"),
    ],
)
def test_folders_that_hold_no_tokenizer(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    done = cache_warm("--from", folder_of(tmp_path / "source", files), home=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not (tmp_path / "cache" / "manifest.json").exists()
    assert list((tmp_path / "cache").rglob("*.json")) == []


def test_files_that_contradict_each_other(tmp_path: Path, gpt2_files: dict[str, bytes]) -> None:
    fewer = b"\n".join(gpt2_files["merges.txt"].splitlines()[:-1])
    done = cache_warm("--from", folder_of(tmp_path / "source", gpt2_files | {"merges.txt": fewer}), home=tmp_path)
    assert done.returncode == 2 and "tokenizer.json does not agree with vocab.json and merges.txt" in done.stderr


def test_the_sample_needs_no_network_and_tokens_are_made_ahead(tmp_path: Path, offline_cache: Path) -> None:
    data = tmp_path / "data" / "sample.jsonl"
    done = cache_warm("--tokenizer", "sample", "--tokens", data, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert tokenizer.find("sample", tmp_path / "cache").sha256 == tokenizer.find("sample", offline_cache).sha256
    (meta,) = (tmp_path / "cache" / "tokens").glob("*/meta.json")
    store = open_tokens(DataConfig(file_path=str(data), tokenizer="sample"), tmp_path / "cache")
    assert store.folder == meta.parent
    assert store.n_documents == sum(1 for _ in embedded_sample.documents()) - sum(store.skipped.values())
    first = Encoder(tokenizer.find("sample", offline_cache)).encode(json.loads(data.open().readline())["text"])
    np.testing.assert_array_equal(store.document(0), first)


def test_only_what_works_offline_enters_the_manifest(
    tmp_path: Path, gpt2_files: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    tree = json.loads(gpt2_files["tokenizer.json"])
    tree["pre_tokenizer"]["add_prefix_space"] = True  # GPT2TokenizerFast takes this from tokenizer_config.json
    source = folder_of(tmp_path / "source", gpt2_files | {"tokenizer.json": json.dumps(tree).encode()})
    code = warm_cache.main(["--from", str(source), "--cache-dir", str(tmp_path / "cache")])
    if code == 0:  # a version that obeys tokenizer.json: then the cached one must be what it obeys
        info = tokenizer.find("gpt2", tmp_path / "cache")
        assert info.bulk == "tokenizers"
        wanted = tokenizer.load("gpt2", tmp_path / "cache")("Hello", add_special_tokens=False)["input_ids"]
        assert Encoder(info).encode("Hello").tolist() == wanted
    else:
        assert "does not load offline" in capsys.readouterr().err
        assert not (tmp_path / "cache" / "manifest.json").exists()
