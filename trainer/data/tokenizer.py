"""Tokenizers of the offline cache: found in its manifest, loaded offline. Imports neither torch nor transformers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.trainer.config.tokenizer_names import canonical, is_folder
from ablatrix.trainer.data.manifest import find_incomplete, read_manifest
from ablatrix.trainer.rundir.errors import OfflineCacheError, UserError
from ablatrix.trainer.rundir.program import program

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ablatrix.trainer.config import DataConfig
    from ablatrix.trainer.data.manifest import TokenizerEntry

TOKENIZER_JSON = "tokenizer.json"
EMBEDDED = ("sample", "bytes")  # created without a network
END_OF_TEXT = "<|endoftext|>"  # the token between documents, as in GPT-2


@dataclass(frozen=True)
class TokenizerInfo:
    """A tokenizer of the offline cache. `sha256` covers all its files; `bulk` is the library for encoding corpora."""

    name: str
    folder: Path
    vocab_size: int
    sha256: str
    bulk: str = "tokenizers"


def folder_name(name: str, setting: str = "data.tokenizer") -> str:
    """Convert a hub id to a single folder name. Raises UserError unless it is a plain name or `owner/name`.

    setting: the setting that the id comes from, for the error message.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?", name):
        if setting == "--weights":
            raise UserError(f"--weights: {name!r} is not a model's name; write gpt2, gpt2-medium or owner/name")
        advice = "write gpt2, sample, bytes or owner/name"
        if is_folder(name):
            command = f"{program()} warm-cache --tokenizer NAME --from {shlex.quote(name)}"
            advice = f"put the files of a folder into the cache under a name, with `{command}`, and write that name"
        raise UserError(f"{setting}: {name!r} is not a tokenizer's name; {advice}")
    return name.replace("/", "--")


def find(name: str, cache_dir: Path) -> TokenizerInfo:
    """Look up a tokenizer in the manifest, which is one small file and cheap enough for every preflight check.

    A folder is used directly. Raises OfflineCacheError, with the command that fixes it, if the tokenizer is missing or
    a file has the wrong size; UserError for a folder without a tokenizer.
    """
    if is_folder(name):
        return _of_folder(name)
    name = canonical(name)
    folder = Path(cache_dir) / "tokenizers" / folder_name(name)
    entry = read_manifest(cache_dir).tokenizers.get(name)
    advice = suggest_warming(name, cache_dir)
    if entry is None:
        raise OfflineCacheError(f"tokenizer {name!r} is not in the offline cache {cache_dir}: {advice}")
    incomplete = find_incomplete(folder, entry.files)
    if incomplete:
        raise OfflineCacheError(f"tokenizer {name!r}: {incomplete} is missing or incomplete: {advice}")
    return TokenizerInfo(name, folder, entry.vocab_size, entry.sha256(), entry.bulk)


def _of_folder(name: str) -> TokenizerInfo:
    path = Path(name) / TOKENIZER_JSON
    try:
        content = path.read_bytes()
        size = count_tokens(json.loads(content))
    except OSError as error:
        raise UserError(f"data.tokenizer: cannot read {path}: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"data.tokenizer: {path} is not the tokenizer.json of a fast tokenizer") from None
    return TokenizerInfo(name, Path(name), size, hashlib.sha256(content).hexdigest())


def count_tokens(tree: Any) -> int:
    """Return the number of ids that a tokenizer.json can produce: one more than the largest."""
    vocab = tree["model"]["vocab"]  # a list for Unigram models, else a mapping from token to id
    largest = max(vocab.values(), default=-1) if isinstance(vocab, dict) else len(vocab) - 1
    return int(max([largest, *(token["id"] for token in tree["added_tokens"])])) + 1


def vocabulary(data: DataConfig, cache_dir: Path) -> tuple[int, int | None]:
    """Return the vocabulary size of a corpus's tokenizer, and the token between documents if data.sampling needs it.

    Raises OfflineCacheError like `find`.
    """
    info = find(data.tokenizer, cache_dir)
    return info.vocab_size, end_of_text(info.folder) if data.sampling != "document" else None


@lru_cache
def end_of_text(folder: Path) -> int | None:
    """Return the id of the token that ends a document according to a tokenizer's files; None if they define none."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:  # may happen in a user's folder
        settings = {}
    name = settings.get("eos_token")
    name = name.get("content") if isinstance(name, dict) else name
    tree = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    ids = {token["content"]: int(token["id"]) for token in tree["added_tokens"]}
    return ids.get(name or END_OF_TEXT)


def verify(info: TokenizerInfo) -> None:
    """Compare the SHA-256 of a tokenizer's files with the manifest. Raises OfflineCacheError if one differs."""
    entry = _manifest_entry(info)
    for file, facts in entry.files.items() if entry else ():
        try:
            digest = hashlib.sha256((info.folder / file).read_bytes()).hexdigest()
        except OSError as error:
            digest = error.strerror or ""
        if digest != facts.sha256:
            raise OfflineCacheError(
                f"tokenizer {info.name!r}: {info.folder / file} is not the file that was put into the cache "
                f"(its SHA-256 differs from the manifest's): {suggest_warming(info.name, info.folder.parent.parent)}"
            )


def was_loaded_offline(info: TokenizerInfo) -> bool:
    """True if `warm-cache` has loaded these files offline, with the libraries that are installed now."""
    entry = _manifest_entry(info)
    return entry is not None and entry.sha256() == info.sha256 and entry.versions == library_versions()


def _manifest_entry(info: TokenizerInfo) -> TokenizerEntry | None:
    """Return what the manifest has about a tokenizer; None for a user's folder, beside which any manifest is theirs."""
    return None if is_folder(info.name) else read_manifest(info.folder.parent.parent).tokenizers.get(info.name)


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that load tokenizers."""
    found = {"python": platform.python_version()}
    for package in ("transformers", "tokenizers", "tiktoken", "huggingface_hub"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def load(name: str, cache_dir: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer from its files alone. Slow at first: importing transformers takes about a second.

    Raises OfflineCacheError like `find` and `verify`.
    """
    info = find(name, cache_dir)
    verify(info)
    go_offline()
    from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast  # type: ignore[attr-defined]

    found: PreTrainedTokenizerFast
    if not is_folder(name) and (info.folder / "vocab.json").exists():
        found = GPT2TokenizerFast.from_pretrained(str(info.folder), local_files_only=True)
    else:
        found = PreTrainedTokenizerFast(tokenizer_file=str(info.folder / TOKENIZER_JSON))
    return found


def go_offline() -> None:
    """Keep Hugging Face's libraries off the network; has no effect once they are imported."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"


def suggest_warming(name: str, cache_dir: Path) -> str:
    """Return advice for the end of an error message: the command that adds this tokenizer to this cache."""
    if is_folder(name):
        return "check its tokenizer.json"
    command = f"{program()} warm-cache --tokenizer {name} --cache-dir {shlex.quote(str(cache_dir))}"
    return f"run `{command}`" + ("" if name in EMBEDDED else " where there is internet, or with --from DIR")
