"""Tokenizers of other kinds than GPT-2's, from the cache and from a folder; and the one of bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data import tokenizer, tokenizer_check, warm_cache
from ablatrix.trainer.data.encoder import Encoder
from ablatrix.trainer.data.tokenizer_check import DIFFICULT_TEXTS
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir.errors import UserError

END = "</s>"
TEXTS = [" ".join(f"word{k % 7} {k * k} naïve café" for k in range(40)), "The quick brown fox. " * 9]


def unigram() -> Tokenizer:
    """Return a tokenizer like those of Llama 1 and T5."""
    found = Tokenizer(models.Unigram())
    found.normalizer, found.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    found.train_from_iterator(
        TEXTS, trainers.UnigramTrainer(vocab_size=80, special_tokens=[END, "<unk>"], unk_token="<unk>")
    )
    return found


def wordpiece() -> Tokenizer:
    found = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    found.normalizer, found.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    found.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=80, special_tokens=["[UNK]", END]))
    return found


def split_bpe() -> Tokenizer:
    """Return a tokenizer like those of Llama 3 and Qwen: digits are split by a pattern of its own."""
    found = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    found.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=alphabet)
    found.train_from_iterator(TEXTS, trainer)
    return found


KINDS: dict[str, Callable[[], Tokenizer]] = {"unigram": unigram, "wordpiece": wordpiece, "bpe": split_bpe}


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder as transformers saves it."""
    path = tmp_path / "mine"
    path.mkdir()
    KINDS[request.param]().save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    return path


@pytest.mark.parametrize("place", ["cache", "folder"])
def test_any_fast_tokenizer_gives_its_own_ids(folder: Path, tmp_path: Path, place: str) -> None:
    exact, cache = Tokenizer.from_file(str(folder / "tokenizer.json")), tmp_path / "cache"
    name = str(folder)
    if place == "cache":
        assert warm_cache.main(["--tokenizer", "mine", "--from", str(folder), "--cache-dir", str(cache)]) == 0
        name = "mine"
    info = tokenizer.find(name, cache)
    assert info.vocab_size == exact.get_vocab_size() == tokenizer_check.check(folder)["vocab_size"]
    assert tokenizer.end_of_text(info.folder) == exact.token_to_id(END)
    loaded = tokenizer.load(name, cache)
    for text in (*TEXTS, *DIFFICULT_TEXTS):
        wanted = exact.encode(text, add_special_tokens=False).ids
        assert Encoder(info).encode(text).tolist() == wanted
        assert loaded.encode(text, add_special_tokens=False) == wanted


def test_a_corpus_is_tokenized_by_a_folder(folder: Path, tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    exact = Tokenizer.from_file(str(folder / "tokenizer.json"))
    config = DataConfig(file_path=str(write_jsonl(TEXTS)), tokenizer=str(folder))
    store = open_tokens(config, tmp_path / "cache")
    assert [store.document(line).tolist() for line in range(2)] == [exact.encode(text).ids for text in TEXTS]


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*tokenizer.json: No such file"):
        tokenizer.find(str(tmp_path), tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"is not the tokenizer.json of a fast tokenizer"):
        tokenizer.find(str(tmp_path), tmp_path)


def test_the_tokens_of_bytes_are_their_values(tmp_path: Path) -> None:
    assert warm_cache.main(["--tokenizer", "bytes", "--cache-dir", str(tmp_path)]) == 0
    info = tokenizer.find("bytes", tmp_path)
    assert (info.vocab_size, tokenizer.end_of_text(info.folder)) == (257, 256)
    text = "é – 😀 plain\n\x00\x7f"
    np.testing.assert_array_equal(Encoder(info).encode(text), np.frombuffer(text.encode(), np.uint8))
    assert tokenizer.load("bytes", tmp_path).decode(list(text.encode())) == text


def test_the_tokens_of_a_character_tokenizer_are_those_of_its_corpus(tmp_path: Path) -> None:
    corpus, cache = tmp_path / "input.txt", tmp_path / "cache"
    texts = ["First Citizen:\nBefore we proceed – é", 'Second block, with "quotes".']
    corpus.write_text("\n\n".join(texts))
    options = ["--tokenizer", "chars", "--characters-of", str(corpus), "--cache-dir", str(cache)]
    assert warm_cache.main(options) == 0
    characters = sorted(set("".join(texts)))
    info = tokenizer.find("chars", cache)
    assert (info.vocab_size, tokenizer.end_of_text(info.folder)) == (len(characters) + 2, len(characters) + 1)
    store = open_tokens(DataConfig(file_path=str(corpus), tokenizer="chars"), cache)
    for line, text in enumerate(texts):
        assert store.document(line).tolist() == [characters.index(c) for c in text]
        assert tokenizer.load("chars", cache).decode(store.document(line).tolist()) == text
    assert Encoder(info).encode("F日").tolist() == [characters.index("F"), len(characters)]
    assert warm_cache.main(["--characters-of", str(corpus), "--cache-dir", str(cache)]) == 2, "gpt2 is another's name"
