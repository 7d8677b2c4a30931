"""Embedded sample corpus: real text that exists on every machine with Python, and a small GPT-2 style tokenizer.

The corpus is the source code of the Python standard library, one document per module. It is the same on every run of
the same Python version, needs no network and raises no license questions.
"""

from __future__ import annotations

import json
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.files import atomic_write

VOCAB_SIZE = 4096  # including END_OF_TEXT, which has the last id, as in GPT-2
END_OF_TEXT = "<|endoftext|>"
# Tests, generated tables, modules that some distributions omit or change, and modules removed in newer Pythons.
LEFT_OUT = frozenset(
    (
        *("test", "tests", "idle_test", "idlelib", "lib2to3", "distutils", "tkinter", "turtledemo", "ensurepip"),
        *("encodings", "site-packages", "dist-packages", "__pycache__", "__phello__", "lib-dynload"),
        *("sitecustomize.py", "usercustomize.py"),
    )
)


def modules(root: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Yield (dotted name, file) of the standard library's modules, sorted. Raises UserError if there are none."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if LEFT_OUT.isdisjoint(parts) and not parts[0].startswith(("config-", "_sysconfigdata")):
            found[".".join(parts).removesuffix(".py").removesuffix(".__init__")] = path
    if not found:
        raise UserError(f"{root}: no sources of the standard library here; set data.file_path to a JSONL file")
    yield from sorted(found.items())


def documents(root: Path | None = None) -> Iterator[dict[str, Any]]:
    """Yield the sample corpus as records with `text` and `meta`, skipping empty modules."""
    for name, path in modules(root):
        try:
            with tokenize.open(path) as file:  # respects a PEP 263 encoding declaration
                text = file.read()
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue  # not part of the standard library
        if text.strip():
            yield {"text": text, "meta": {"module": name}}


def write_corpus(path: Path, root: Path | None = None) -> int:
    """Write the sample corpus as JSONL unless the file is already identical; return the number of documents."""
    lines = [json.dumps(record, ensure_ascii=False) for record in documents(root)]
    content = ("\n".join(lines) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        atomic_write(path, content)
    return len(lines)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> dict[str, bytes]:
    """Train a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019); return the four files of a GPT-2 tokenizer.

    The same texts give the same bytes: ties between pairs are broken by the ids of their parts.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    vocab[END_OF_TEXT] = len(vocab)
    return tokenizer_files(vocab, merges)


def tokenizer_files(vocab: dict[str, int], merges: list[str]) -> dict[str, bytes]:
    """Return vocab.json, merges.txt, tokenizer.json and tokenizer_config.json of a GPT-2 style tokenizer.

    vocab: id of each token (END_OF_TEXT is appended if missing); merges: `left right` pairs, highest priority first.
    """
    special = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": True}
    tree = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab.get(END_OF_TEXT, len(vocab)), "content": END_OF_TEXT, **special}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [merge.split(" ") for merge in merges],
        },
    }
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
        "tokenizer.json": json.dumps(tree, ensure_ascii=False).encode(),
        "tokenizer_config.json": json.dumps(TOKENIZER_CONFIG).encode(),
    }


TOKENIZER_CONFIG = {
    "add_prefix_space": False,
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    "unk_token": END_OF_TEXT,
    "model_max_length": 1024,
    "tokenizer_class": "GPT2Tokenizer",
}
