"""Tokenizers of the offline cache, and the bulk encoder against GPT2TokenizerFast."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablatrix.trainer.config import tokenizer_names
from ablatrix.trainer.data import embedded_sample, tokenizer
from ablatrix.trainer.data.encoder import Encoder, exact_tokenizer, fast_table, token_dtype
from ablatrix.trainer.data.tokenizer import TokenizerInfo
from ablatrix.trainer.data.tokenizer_check import DIFFICULT_TEXTS
from ablatrix.trainer.rundir.errors import OfflineCacheError, UserError

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def info(offline_cache: Path) -> TokenizerInfo:
    return tokenizer.find("sample", offline_cache)


@pytest.fixture(scope="module")
def reference(offline_cache: Path) -> Any:
    return tokenizer.load("sample", offline_cache)


@pytest.fixture(scope="module", params=["tiktoken", "tokenizers"])
def encoder(request: pytest.FixtureRequest, info: TokenizerInfo) -> Encoder:
    return Encoder(TokenizerInfo(info.name, info.folder, info.vocab_size, info.sha256, request.param))


def test_the_sample_is_found(info: TokenizerInfo, reference: Any) -> None:
    assert (info.name, info.vocab_size, info.bulk) == ("sample", 4096, "tiktoken")
    assert len(reference) == 4096
    assert reference.eos_token_id == 4095
    assert type(reference).__name__ in ("GPT2Tokenizer", "GPT2TokenizerFast")
    assert reference.decode(reference.encode("def f(x):\n    return x")) == "def f(x):\n    return x"


def test_what_warm_cache_has_loaded_with_other_libraries_is_loaded_again(
    info: TokenizerInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tokenizer.was_loaded_offline(info)
    assert not tokenizer.was_loaded_offline(replace(info, sha256="0" * 64))
    monkeypatch.setattr(tokenizer, "library_versions", lambda: {"transformers": "0"})
    assert not tokenizer.was_loaded_offline(info)


def test_a_manifest_beside_a_folder_is_none_of_the_cache(
    info: TokenizerInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(info.folder, "own")
    Path("manifest.json").write_text('{"name": "a web page"}')
    found = tokenizer.find("./own", tmp_path)
    assert not tokenizer.was_loaded_offline(found)
    assert Encoder(found).encode("Hello").tolist() == Encoder(info).encode("Hello").tolist()


def test_finding_needs_neither_torch_nor_transformers(offline_cache: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ablatrix.trainer.data import batches as data, tokenizer; "
        "tokenizer.find('sample', Path(sys.argv[1])); "
        "sys.exit(bool({'torch', 'transformers', 'tokenizers', 'tiktoken', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(offline_cache)], cwd=ROOT, check=False).returncode == 0


@pytest.mark.slow
def test_loading_forbids_the_network(offline_cache: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from ablatrix.trainer.data import tokenizer; "
        "from ablatrix.trainer.data import tokenizer_check as offline_check; "
        "offline_check.refuse_connections(); tokenizer.load('sample', Path(sys.argv[1])); "
        "from huggingface_hub import constants; "
        "sys.exit(not (constants.HF_HUB_OFFLINE and os.environ['TRANSFORMERS_OFFLINE'] == '1'))"
    )
    environ = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    command = [sys.executable, "-c", code, str(offline_cache)]
    assert subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode == 0


def test_a_missing_tokenizer_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(OfflineCacheError, match=r"`.* warm-cache --tokenizer gpt2 --cache-dir .*--from DIR"):
        tokenizer.find("gpt2", tmp_path)
    with pytest.raises(OfflineCacheError, match=rf"`.* warm-cache --tokenizer sample --cache-dir {tmp_path}`$"):
        tokenizer.find("sample", tmp_path)


@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_damaged_files_are_noticed(offline_cache: Path, tmp_path: Path, damage: str) -> None:
    shutil.copy(offline_cache / "manifest.json", tmp_path)
    shutil.copytree(offline_cache / "tokenizers", tmp_path / "tokenizers")
    victim = tmp_path / "tokenizers" / "sample" / "merges.txt"
    victim.unlink() if damage == "removed" else victim.write_bytes(victim.read_bytes()[:-5])
    with pytest.raises(OfflineCacheError, match=r"merges.txt is missing or incomplete: run `.* warm-cache"):
        tokenizer.load("sample", tmp_path)


def test_a_cache_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(OfflineCacheError, match=r"format 99 is not this version's"):
        tokenizer.find("sample", tmp_path)


@pytest.mark.parametrize("name", ["../x", "a/b/c", "/etc", ".hidden", "-flag", "a b", "", "a\nb", "a/..", "a/.b"])
def test_names_that_are_no_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a tokenizer's name"):
        tokenizer.folder_name(name)


def test_hub_names_get_a_folder_of_their_own() -> None:
    assert tokenizer.folder_name("owner/some.name-1") == "owner--some.name-1"
    assert tokenizer_names.canonical("openai-community/gpt2") == "gpt2"


# Letters, digits and blanks of many scripts, and what the splitting rule is about.
PIECES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["<|endoftext|>", "<|endof", "text|>", "'s", "'ll", " '", "\r\n", "   ", "\t \n", "don't", "1234"]),
    st.text(alphabet=" \t\n\r\x0b\x0c\x1c\x85\xa0\u2003\u2028\u3000\u180e\u200b", max_size=8),
    st.sampled_from(["def ", "    return", "日本語", "étude", "👩‍👩‍👧", "ｆｕｌｌ", "²³", "Ⅷ", "٣٤", "e\u0301"]),
)


@settings(max_examples=400, deadline=None)
@given(pieces=st.lists(PIECES, max_size=12))
def test_ids_equal_the_reference_on_generated_text(encoder: Encoder, reference: Any, pieces: list[str]) -> None:
    text = "".join(pieces)
    assert encoder.encode(text).tolist() == reference(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", DIFFICULT_TEXTS)
def test_ids_equal_the_reference_on_difficult_texts(encoder: Encoder, reference: Any, text: str) -> None:
    assert encoder.encode(text).tolist() == reference(text, add_special_tokens=False)["input_ids"]


def test_ids_equal_the_reference_on_every_character(info: TokenizerInfo, reference: Any) -> None:
    """Which characters are letters, numerals or blanks depends on each library's Unicode tables."""
    characters = [chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000]
    named = [c for c in characters if unicodedata.category(c) not in ("Cn", "Co")]
    encoder = Encoder(info)
    texts = ["".join(f"a{c}1{c} " for c in named[k : k + 500]) for k in range(0, len(named), 500)]
    for text, ids in zip(texts, reference(texts, add_special_tokens=False)["input_ids"], strict=True):
        np.testing.assert_array_equal(encoder.encode(text), ids)


def test_ids_equal_the_reference_on_real_documents(encoder: Encoder, reference: Any, corpus: Path) -> None:
    for line in corpus.read_text().splitlines():
        text = json.loads(line)["text"]
        assert encoder.encode(text).tolist() == reference(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", [" " * 1_000_000, "\n" * 200_000, "a" * 200_000, " \n" * 200_000, "=" * 200_000])
@pytest.mark.slow
def test_long_runs_of_one_character(info: TokenizerInfo, text: str) -> None:
    """A regular expression engine that backtracks gives up on these; the exact one must then take over."""
    exact = exact_tokenizer(info.folder / "tokenizer.json")
    np.testing.assert_array_equal(Encoder(info).encode(text), exact.encode(text, add_special_tokens=False).ids)


def test_token_types() -> None:
    assert [token_dtype(n).name for n in (1, 50257, 65536, 65537)] == ["uint16", "uint16", "uint16", "uint32"]


def folder_with(path: Path, vocab: list[str], merges: list[str]) -> Path:
    for name, content in embedded_sample.tokenizer_files({token: k for k, token in enumerate(vocab)}, merges).items():
        (path / name).write_bytes(content)
    return path / "tokenizer.json"


ALPHABET = list(json.loads(embedded_sample.train_tokenizer(["a"], vocab_size=257)["vocab.json"]))[:-1]


def test_tiktoken_is_refused_where_it_would_merge_what_no_rule_merges(tmp_path: Path) -> None:
    """`a` + `bc` gives the token `abc`, but only `ab` + `c` is a rule: tiktoken would merge the former."""
    file = folder_with(tmp_path, [*ALPHABET, "bc", "ab", "abc", "<|endoftext|>"], ["b c", "a b", "ab c"])
    assert fast_table(file) is None
    encoder = Encoder(TokenizerInfo("x", tmp_path, 260, "", "tokenizers"))
    assert [ALPHABET[i] if i < 256 else i for i in encoder.encode("abc")] == ["a", 256]


def test_ids_in_another_order_than_the_merges(tmp_path: Path) -> None:
    """A vocabulary whose ids are not the ranks of its merges: special token first, letters in any order."""
    vocab = ["<|endoftext|>", "abc", *reversed(ALPHABET), "ab"]
    table = fast_table(folder_with(tmp_path, vocab, ["a b", "ab c"]))
    assert table is not None and sorted(table) == list(range(len(vocab)))
    text = "abcab cab<|endoftext|>ba é"
    ids = [
        Encoder(TokenizerInfo("x", tmp_path, len(vocab), "", bulk)).encode(text).tolist()
        for bulk in ("tiktoken", "tokenizers")
    ]
    assert ids[0] == ids[1] and ids[0][:1] == [1] and 0 in ids[0]


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
    ],
)
def test_tiktoken_is_refused_for_other_pipelines(info: TokenizerInfo, tmp_path: Path, change: dict[str, Any]) -> None:
    tree = json.loads((info.folder / "tokenizer.json").read_text())
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(tree | change))
    assert fast_table(file) is None
    assert fast_table(info.folder / "tokenizer.json") is not None


def test_tiktoken_is_refused_for_added_tokens_that_swallow_blanks(info: TokenizerInfo, tmp_path: Path) -> None:
    tree = json.loads((info.folder / "tokenizer.json").read_text())
    tree["added_tokens"][0]["lstrip"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    assert fast_table(tmp_path / "tokenizer.json") is None


@pytest.mark.slow
def test_the_sample_tokenizer_is_the_same_in_every_process(offline_cache: Path) -> None:
    code = (
        "import hashlib, itertools; from ablatrix.trainer.data import embedded_sample as samples; "
        "texts = (d['text'] for d in itertools.islice(samples.documents(), 0, None, 10)); "
        "files = samples.train_tokenizer(texts); "
        "print({name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)})"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel},
            capture_output=True,
            check=True,
        ).stdout
        for seed, threads, parallel in (("0", "1", "true"), ("1", "3", "true"), ("2", "2", "false"))
    }
    assert len(outputs) == 1 and b"vocab.json" in outputs.pop()


def test_the_sample_corpus_is_sorted_real_text_without_tests(tmp_path: Path) -> None:
    path = tmp_path / "sample.jsonl"
    assert embedded_sample.write_corpus(path) > 200
    first = path.read_bytes()
    records = [json.loads(line) for line in first.splitlines()]
    names = [record["meta"]["module"] for record in records]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert {"json", "asyncio.events", "pydoc_data.topics"} <= set(names)
    assert not any(part in ("test", "tests", "site-packages") for name in names for part in name.split("."))
    assert (json.__doc__ or "").splitlines()[0] in records[names.index("json")]["text"]
    stamp = path.stat().st_mtime_ns
    embedded_sample.write_corpus(path)
    assert path.read_bytes() == first and path.stat().st_mtime_ns == stamp
