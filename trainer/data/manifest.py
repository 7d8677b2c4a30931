"""Manifest of the offline cache, listing its tokenizers, weights and data files with origins, sizes and hashes.

    manifest.json            this manifest
    models/<name>/           model.safetensors, config.json
    tokenizers/<name>/       tokenizer.json, tokenizer_config.json; of GPT-2's kind vocab.json, merges.txt: no links
    tokens/<key>/            token caches of corpora (see trainer.data.token_cache)

`warm-cache` fills the cache on a machine with internet access; jobs only read it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError, field_validator

from ablatrix.trainer.data.shard_claims import Claims
from ablatrix.trainer.rundir.errors import OfflineCacheError
from ablatrix.trainer.rundir.files import atomic_write, read_bytes
from ablatrix.trainer.rundir.owners import owner_name
from ablatrix.trainer.rundir.program import program

MANIFEST = "manifest.json"
FORMAT = 1
# A GPT-2 style tokenizer has all of them, any other the last two
TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")

SAFETENSORS = "model.safetensors"
MODEL_FILES = (SAFETENSORS, "config.json")


class FileFacts(BaseModel):
    """Size and SHA-256 of a file."""

    size: int
    sha256: str


class TokenizerEntry(BaseModel):
    """A tokenizer. bulk: library for encoding corpora (tiktoken, tokenizers); versions: packages that verified it."""

    source: str
    revision: str | None = None
    commit: str | None = None
    vocab_size: int
    bulk: str = "tokenizers"
    files: dict[str, FileFacts]
    date: str = ""
    versions: dict[str, str] = {}

    @field_validator("files")
    @classmethod
    def _check_names(cls, files: dict[str, FileFacts]) -> dict[str, FileFacts]:
        if set(files) not in (set(TOKENIZER_FILES), set(TOKENIZER_FILES[2:])):
            raise ValueError(f"files must be {', '.join(TOKENIZER_FILES)}, or the last two")
        return files

    def sha256(self) -> str:
        """Return one SHA-256 for all files: the hash of the sorted lines `name hash`."""
        lines = "".join(f"{name} {self.files[name].sha256}\n" for name in sorted(self.files))
        return hashlib.sha256(lines.encode()).hexdigest()


class WeightsEntry(BaseModel):
    """The weights of a model from a hub repository."""

    source: str
    revision: str | None = None
    commit: str | None = None
    files: dict[str, FileFacts]
    date: str = ""


class DataEntry(BaseModel):
    """A downloaded data file and its location."""

    source: str
    file: str
    commit: str = ""
    size: int
    sha256: str
    path: str
    date: str = ""


class Manifest(BaseModel):
    """The content of manifest.json."""

    format: int = FORMAT
    tokenizers: dict[str, TokenizerEntry] = {}
    data: dict[str, DataEntry] = {}
    models: dict[str, WeightsEntry] = {}


def read_manifest(cache_dir: Path) -> Manifest:
    """Return the manifest, or an empty one if there is none. Raises OfflineCacheError if it cannot be used."""
    path = Path(cache_dir) / MANIFEST
    advice = f"remove it and run `{program()} warm-cache`"
    try:
        text = read_bytes(path)
    except OSError:
        if os.path.lexists(path) and not os.access(path, os.R_OK):
            raise OfflineCacheError(
                f"cannot read {path}; have {owner_name(path)} share the cache (chmod -R a+rX), or choose another"
            ) from None
        return Manifest()
    try:
        number = json.loads(text).get("format")
        if number != FORMAT:
            raise OfflineCacheError(
                f"{path}: format {number!r} is not this version's ({FORMAT}); choose another --cache-dir, or {advice}"
            )
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise OfflineCacheError(f"{path}: corrupt ({place}: {error.errors()[0]['msg']}); {advice}") from None
    except (ValueError, AttributeError):  # not JSON, or not an object
        raise OfflineCacheError(f"{path}: corrupt; {advice}") from None


def find_incomplete(folder: Path, files: Mapping[str, FileFacts]) -> Path | None:
    """Return the first of an entry's files that is missing or has the wrong size, None if all are complete."""
    for name, facts in files.items():
        try:
            whole = (folder / name).stat().st_size == facts.size
        except OSError:
            whole = False
        if not whole:
            return folder / name
    return None


def add_entry(cache_dir: Path, name: str, entry: TokenizerEntry | DataEntry | WeightsEntry) -> None:
    """Add or replace one entry, with only one process at a time doing so."""
    with Claims(cache_dir) as claims:
        while not claims.acquire(".manifest.claim", take_over=True):
            time.sleep(0.05)
        manifest = read_manifest(cache_dir)
        if isinstance(entry, TokenizerEntry):
            manifest.tokenizers[name] = entry
        elif isinstance(entry, WeightsEntry):
            manifest.models[name] = entry
        else:
            manifest.data[name] = entry
        text = json.dumps(manifest.model_dump(exclude_none=True), indent=2, sort_keys=True) + "\n"
        atomic_write(cache_dir / MANIFEST, text)
