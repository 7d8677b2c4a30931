"""Tokenizer whose tokens are the characters of a corpus, as in nanoGPT's character-level Shakespeare example."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ablatrix.trainer.data.corpus import document_text
from ablatrix.trainer.data.corpus_files import are_whole_texts, describe_files, find_files
from ablatrix.trainer.data.decoders import CHUNK
from ablatrix.trainer.data.embedded_sample import END_OF_TEXT
from ablatrix.trainer.data.text_source import open_source
from ablatrix.trainer.rundir.errors import DataError

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig

UNKNOWN = "<|unknown|>"  # stands for any character that is not in the corpus


def character_tokenizer(config: DataConfig) -> dict[str, bytes]:
    """Return tokenizer.json and tokenizer_config.json for a corpus: its sorted characters, then two special tokens.

    Raises DataError if the corpus cannot be read or has no documents.
    """
    found: set[str] = set()
    for text in _read_texts(config):
        found |= set(text)
    if not found:
        raise DataError(f"{describe_files(config, find_files(config))}: no document found under {config.text_key!r}")
    vocab = {token: k for k, token in enumerate([*sorted(found), UNKNOWN, END_OF_TEXT])}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tree: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [{"id": vocab[token], "content": token, **special} for token in (UNKNOWN, END_OF_TEXT)],
        "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "unk_token": UNKNOWN, "fuse_unk": False, "vocab": vocab, "merges": []},
    }
    return {
        "tokenizer.json": json.dumps(tree, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps({"eos_token": END_OF_TEXT, "unk_token": UNKNOWN}).encode(),
    }


def _read_texts(config: DataConfig) -> Iterator[str]:
    """Yield the texts of all documents in one pass, holding one line in memory at a time."""
    files = find_files(config)
    source = open_source(files, are_whole_texts(config, files))
    position, tail, more = 0, b"", b"\n"
    while more:
        more = source.read(position, CHUNK)
        position += len(more)
        *lines, tail = (tail + (more or b"\n")).split(b"\n")
        for line in lines:
            text, _ = document_text(line, config.text_key)
            if text is not None:
                yield text
