"""Embedded sample corpus: real text that every machine with Python has, and a small GPT-2 style tokenizer.

The corpus is the Python standard library, one document per module: its sources with their documentation strings. It
is the same on every run of the same Python, needs no network and no license question.
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

VOCAB_SIZE = 4096  # END_OF_TEXT included, which is the last one, as in GPT-2
END_OF_TEXT = "<|endoftext|>"
# Tests, generated tables, what some distributions leave out or change, and what newer Pythons no longer have.
LEFT_OUT = frozenset(
    (
        *("test", "tests", "idle_test", "idlelib", "lib2to3", "distutils", "tkinter", "turtledemo", "ensurepip"),
        *("encodings", "site-packages", "dist-packages", "__pycache__", "__phello__", "lib-dynload"),
        *("sitecustomize.py", "usercustomize.py"),
    )
)


def modules(root: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Yield (dotted name, file) of the standard library's modules, sorted. Raises UserError if there is none."""
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
    """Yield the sample corpus as records with `text` and `meta`, without empty modules."""
    for name, path in modules(root):
        try:
            with tokenize.open(path) as file:  # obeys a coding cookie
                text = file.read()
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue  # not a module of the standard library
        if text.strip():
            yield {"text": text, "meta": {"module": name}}


def write_corpus(path: Path, root: Path | None = None) -> int:
    """Write the sample corpus as JSONL unless the file is the same already; return the number of documents."""
    lines = [json.dumps(record, ensure_ascii=False) for record in documents(root)]
    content = ("\n".join(lines) + "\n").encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        atomic_write(path, content)
    return len(lines)


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> dict[str, bytes]:
    """Train a byte-level BPE (Sennrich et al. 2016; Radford et al. 2019); return the files of a GPT-2 style tokenizer.

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
    """Return tokenizer.json and tokenizer_config.json of a GPT-2 style tokenizer.

    vocab: id of each token (END_OF_TEXT is added last if missing); merges: `left right`, most important first.
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
