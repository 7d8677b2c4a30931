"""Tokenizers of the offline cache: found in the manifest, loaded without a network. Free of torch and transformers.

The cache is a folder that `cache_warm` fills and jobs only read:

    manifest.json            what is there: source, revision, files with sizes and SHA-256
    tokenizers/<name>/       vocab.json, merges.txt, tokenizer.json, tokenizer_config.json: real files, no links
    tokens/<key>/            token caches of data files (see trainer.data.token_cache)
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.trainer.config.tokenizer_names import canonical
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import OfflineCacheError, UserError
from ablatrix.trainer.rundir.files import owner_name
from ablatrix.trainer.rundir.program import program

if TYPE_CHECKING:
    from transformers import GPT2TokenizerFast  # type: ignore[attr-defined]

MANIFEST = "manifest.json"
FORMAT = 1  # of manifest.json
FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class TokenizerInfo:
    """A tokenizer of the offline cache. `sha256` is of all its files; `bulk` tells which engine encodes corpora."""

    name: str
    folder: Path
    vocab_size: int
    sha256: str
    bulk: str = "tokenizers"


def safe_folder(name: str) -> str:
    """A hub id as one folder name. Raises UserError for what is neither a plain name nor `owner/name`."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?", name):
        advice = "write gpt2, sample or owner/name"
        if name.startswith(("/", "~", ".", "$")) or name.count("/") > 1:  # a folder of its files
            command = f"{program()} warm-cache --tokenizer NAME --from {shlex.quote(name)}"
            advice = f"put the files of a folder into the cache under a name, with `{command}`, and write that name"
        raise UserError(f"data.tokenizer: {name!r} is not a tokenizer's name; {advice}")
    return name.replace("/", "--")


def find(name: str, cache_dir: Path) -> TokenizerInfo:
    """Look a tokenizer up in the manifest. Reads one small file, so that every preflight can afford it.

    Raises OfflineCacheError, naming the command that mends it, where it is missing or its files are not whole.
    """
    name = canonical(name)
    folder = Path(cache_dir) / "tokenizers" / safe_folder(name)
    entry = read_manifest(cache_dir)["tokenizers"].get(name)
    if entry is None:
        raise OfflineCacheError(f"tokenizer {name!r} is not in the offline cache {cache_dir}: {mend(name, cache_dir)}")
    try:
        files = {file: entry["files"][file] for file in FILES}
        info = TokenizerInfo(name, folder, int(entry["vocab_size"]), digest(files), entry.get("bulk", "tokenizers"))
        sizes = {file: facts["size"] for file, facts in files.items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise OfflineCacheError(
            f"{Path(cache_dir) / MANIFEST}: damaged: tokenizer {name!r}: {mend(name, cache_dir)}"
        ) from None
    for file, size in sizes.items():
        try:
            whole = (folder / file).stat().st_size == size
        except OSError:
            whole = False
        if not whole:
            raise OfflineCacheError(
                f"tokenizer {name!r}: {folder / file} is missing or incomplete: {mend(name, cache_dir)}"
            )
    return info


def verify(info: TokenizerInfo) -> None:
    """Compare the files' SHA-256 with the manifest's: milliseconds, and only where the files are about to be used.

    Raises OfflineCacheError for a file that is not the one that entered the cache.
    """
    cache_dir = info.folder.parent.parent
    entry = read_manifest(cache_dir)["tokenizers"].get(info.name, {"files": {}})
    for file, facts in entry["files"].items():
        try:
            digest = hashlib.sha256((info.folder / file).read_bytes()).hexdigest()
        except OSError as error:
            digest = error.strerror or ""
        if digest != facts["sha256"]:
            raise OfflineCacheError(
                f"tokenizer {info.name!r}: {info.folder / file} is not the file that was put into the cache "
                f"(its SHA-256 differs from the manifest's): {mend(info.name, cache_dir)}"
            )


def load(name: str, cache_dir: Path) -> GPT2TokenizerFast:
    """The tokenizer itself, from the cache alone. Takes about a second: the import of transformers.

    Raises OfflineCacheError as `find` and `verify` do.
    """
    info = find(name, cache_dir)
    verify(info)
    go_offline()
    from transformers import GPT2TokenizerFast  # type: ignore[attr-defined]

    return GPT2TokenizerFast.from_pretrained(str(info.folder), local_files_only=True)


def go_offline() -> None:
    """Forbid Hugging Face's libraries the network; they read this once, when they are first imported."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"


def mend(name: str, cache_dir: Path) -> str:
    """The advice at the end of an error: the command that puts this tokenizer into this cache."""
    command = f"{program()} warm-cache --tokenizer {name} --cache-dir {shlex.quote(str(cache_dir))}"
    return f"run `{command}`" + ("" if name == "sample" else " where there is internet, or with --from DIR")


def read_manifest(cache_dir: Path) -> dict[str, Any]:
    """The manifest, with empty sections where there is none yet. Raises OfflineCacheError for a foreign format."""
    path = Path(cache_dir) / MANIFEST
    manifest = run_files.read_json(path) or {}
    if not manifest and os.path.lexists(path) and not os.access(path, os.R_OK):
        raise OfflineCacheError(
            f"{path}: cannot be read; have {owner_name(path)} share the cache (chmod -R a+rX), or choose another"
        )
    if manifest and manifest.get("format") != FORMAT:
        raise OfflineCacheError(
            f"{path}: format {manifest.get('format')!r} is not this version's ({FORMAT}): "
            f"choose another --cache-dir, or remove this one and run `{program()} warm-cache`"
        )
    sections = {"format": FORMAT, "tokenizers": {}, "data": {}} | manifest
    if not isinstance(sections["tokenizers"], dict) or not isinstance(sections["data"], dict):
        raise OfflineCacheError(f"{path}: damaged; remove it and run `{program()} warm-cache`")
    return sections


def digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One SHA-256 over a tokenizer's files: the hash of `name hash` lines, sorted."""
    lines = "".join(f"{name} {files[name]['sha256']}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()
