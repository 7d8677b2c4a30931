"""Token cache of a corpus: its folder, its files, and how they are written. Torch-free.

    <cache_dir>/tokens/<key>/    key: hash of path, size and time of the files, text key, tokenizer and format
        index.json, lines.u64    number of lines and fingerprint; where each line starts (one scan of the corpus)
        shards/, claims/         tokens of consecutive lines while the cache is being built, and who builds which
        tokens.bin               the ids of all documents, concatenated, uint16 or uint32
        offsets.npy              int64, n_lines + 1: line i is tokens[offsets[i]:offsets[i + 1]]; empty where skipped
        meta.json                written last: the cache is complete once it exists; tokens.bin is not used before

Every file appears complete, by a rename, and does not depend on which process writes it. Any number of jobs on any
hosts may therefore build one cache together, and any of them may be killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel

from ablatrix.trainer.data import fingerprints
from ablatrix.trainer.data.corpus import Lines, no_documents, scan_lines
from ablatrix.trainer.data.corpus_files import are_whole_texts, describe_files, file_stamp, find_files
from ablatrix.trainer.data.encoder import token_dtype
from ablatrix.trainer.data.formats import TextFile
from ablatrix.trainer.data.shards import Shard
from ablatrix.trainer.data.text_source import Source, open_source
from ablatrix.trainer.data.token_store import SCAN, Meta, map_offsets
from ablatrix.trainer.data.tokenizer import TokenizerInfo, find
from ablatrix.trainer.rundir import files as safe_files
from ablatrix.trainer.rundir.errors import DataError, RunError, printable

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig

FORMAT = 2
# Bytes of the (decompressed) corpus per shard: about a second of work for one core; less for a small corpus, so that
# all cores have work.
SHARD_BYTES = (1 << 20, 16 << 20)
SHARDS = 64
# Where tokens are kept if system.cache_dir belongs to another user or is read-only
FALLBACK_CACHES = (".cache/ablatrix", "~/.cache/ablatrix")

Record = TypeVar("Record", bound=BaseModel)


class Index(BaseModel):
    """index.json: the lines of the corpus, and how it is cut into shards.

    starts: offset of each file in the concatenation; layers: layers around each file, such as compression.
    """

    lines: int
    bytes: int
    shard_bytes: int
    fingerprint: str
    starts: list[int]
    layers: list[tuple[str, ...]]


def read_record(path: Path, kind: type[Record]) -> Record | None:
    """Return a JSON record, or None if it is missing, corrupt, or from a different version."""
    try:
        return kind.model_validate_json(safe_files.read_bytes(path))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class Cache:
    """A corpus with one tokenizer, and the folder where its tokens are kept."""

    files: tuple[Path, ...]
    name: str  # name of the corpus, for messages
    text_key: str
    tokenizer: TokenizerInfo
    folder: Path
    stamps: tuple[tuple[int, int], ...]  # size and mtime_ns of each file
    whole_texts: bool = False  # a plain text file is one document

    @classmethod
    def of(cls, config: DataConfig, cache_dir: Path) -> Cache:
        """Return the cache of a corpus, which may not exist yet.

        It is in `cache_dir`, or in one of FALLBACK_CACHES if its folder there cannot be written, because the cache is
        shared or another user is building it. Raises DataError (no such file) or OfflineCacheError (no such tokenizer).
        """
        files, tokenizer = find_files(config), find(config.tokenizer, cache_dir)
        stamps = tuple(file_stamp(path, config.files_setting) for path in files)
        marks = [[os.path.realpath(path), *stamp] for path, stamp in zip(files, stamps, strict=True)]
        identity = [FORMAT, marks, config.text_key, tokenizer.sha256]
        identity += [config.text_files] if config.text_files != "auto" else []
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]
        name, folder = describe_files(config, files), Path(cache_dir) / "tokens" / key
        cache = cls(files, name, config.text_key, tokenizer, folder, stamps, are_whole_texts(config, files))
        if cache.meta() is None and not is_writable(folder):
            fallbacks = (Path(place).expanduser().absolute() / "tokens" / key for place in FALLBACK_CACHES)
            return replace(cache, folder=next(filter(is_writable, fallbacks), folder))
        return cache

    @property
    def size(self) -> int:
        """Total size of the files in bytes."""
        return sum(size for size, _ in self.stamps)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a token id on disk."""
        return token_dtype(self.tokenizer.vocab_size)

    @property
    def claims(self) -> Path:
        """Folder with the claims of the processes that build the cache."""
        return self.folder / "claims"

    def meta(self) -> Meta | None:
        """Return meta.json, None if the cache is not complete yet."""
        meta = read_record(self.folder / "meta.json", Meta)
        if meta is None or map_offsets(self.folder / "offsets.npy", meta.lines) is None:
            return None
        try:
            whole = (self.folder / "tokens.bin").stat().st_size == meta.tokens * self.dtype.itemsize
        except OSError:
            return None
        return meta if whole else None

    def is_indexed(self) -> bool:
        """True once the index can be read."""
        return read_record(self.folder / "index.json", Index) is not None

    def index(self) -> Index:
        """Return index.json. Raises RunError if the corpus has not been scanned yet."""
        index = read_record(self.folder / "index.json", Index)
        if index is None:
            raise RunError(f"{self.folder}: the index is missing; start the run again")
        return index

    def lines(self) -> Lines:
        """Return the lines of the corpus; requires the index."""
        index = self.index()
        files = [TextFile(*file) for file in zip(self.files, index.layers, strict=True)]
        starts = np.memmap(self.folder / "lines.u64", dtype="<u8", mode="r", shape=(index.lines + 1,))
        return Lines(Source(files, index.starts), starts, self.text_key)

    def check_unchanged(self) -> None:
        """Raise DataError if a file has changed since this cache was made."""
        for path, stamp in zip(self.files, self.stamps, strict=True):
            if file_stamp(path) != stamp:
                raise DataError(f"{path} changed while it was being read; start again when it is complete")

    def shard_file(self, shard: int) -> Path:
        """Return the path of a shard."""
        return self.folder / "shards" / f"{shard:05d}"

    def shard_count(self) -> int:
        """Return the number of shards. Shard k has the lines that start in bytes [k, k + 1) * shard_bytes."""
        index = self.index()
        return -(-index.bytes // index.shard_bytes)

    def shard_lines(self, lines: Lines, shard: int) -> range:
        """Return the lines of one shard; empty if one long line spans it."""
        size = self.index().shard_bytes
        bounds = np.array([shard * size, (shard + 1) * size], dtype=np.uint64)
        first, last = np.searchsorted(lines.starts[:-1], bounds)
        return range(int(first), int(last))

    def shards_done(self) -> set[int]:
        """Return the numbers of the finished shards. Raises FileNotFoundError once they have been joined."""
        with os.scandir(self.folder / "shards") as found:
            return {int(entry.name) for entry in found if entry.name.isdigit()}

    def has_shard(self, shard: int) -> bool:
        """True if a shard is finished."""
        return self.shard_file(shard).is_file()


def is_writable(folder: Path) -> bool:
    """True if permissions allow creating or writing to a folder."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    return not nearest.is_dir() or os.access(nearest, os.W_OK | os.X_OK)  # a file in the way is reported when writing


def write_index(cache: Cache, report: Any) -> None:
    """Scan the corpus for line starts; write lines.u64 and index.json. report: called with the number of bytes read."""
    source = open_source(cache.files, cache.whole_texts)
    lines = 0

    def scan(file: IO[bytes]) -> None:
        nonlocal lines
        lines = scan_lines(source, lambda starts: file.write(starts.astype("<u8").tobytes()), report)

    safe_files.replace(cache.folder / "lines.u64", scan)
    cache.check_unchanged()
    if not lines:
        raise DataError(f"{cache.name}: the file is empty; it must contain one JSON object per line")
    starts = np.memmap(cache.folder / "lines.u64", dtype="<u8", mode="r")
    lengths = (np.diff(starts[k : k + SCAN + 1]) for k in range(0, lines, SCAN))
    size = int(starts[-1])
    index = Index(
        lines=lines,
        bytes=size,
        shard_bytes=min(max(size // SHARDS, SHARD_BYTES[0]), SHARD_BYTES[1]),
        fingerprint=fingerprints.of_lines(cache.files, lengths, cache.text_key, cache.tokenizer.sha256),
        starts=source.starts,
        layers=[file.layers for file in source.files],
    )
    source.close()
    safe_files.atomic_write(cache.folder / "index.json", index.model_dump_json())


@dataclass
class Totals:
    """Totals over all shards of a cache. first: number of the first skipped line by reason."""

    tokens: int = 0
    documents: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)

    def add(self, shard: Shard) -> None:
        """Add the next shard."""
        self.tokens += len(shard.tokens)
        self.documents += int(np.count_nonzero(shard.counts))
        self.skipped.update(shard.skipped)
        self.first = shard.first | self.first


def join_shards(cache: Cache, lines: Lines) -> None:
    """Join all shards into tokens.bin, offsets.npy and meta.json.

    Raises DataError if there are no documents, FileNotFoundError if a shard is missing.
    """
    shards = [cache.shard_file(number) for number in range(cache.shard_count())]
    totals, digest = Totals(), hashlib.sha256()

    def write_tokens(file: IO[bytes]) -> None:
        nonlocal totals, digest
        totals, digest = Totals(), hashlib.sha256()
        for path in shards:
            shard = Shard.read(path, cache.dtype)
            data = shard.tokens.tobytes()
            file.write(data)
            digest.update(data)
            totals.add(shard)

    def write_offsets(file: IO[bytes]) -> None:
        header = {"descr": "<i8", "fortran_order": False, "shape": (len(lines) + 1,)}
        np.lib.format.write_array_header_1_0(file, header)
        start = 0
        for path in shards:
            offsets = Shard.read(path, cache.dtype).offsets + start
            file.write(offsets[:-1].astype("<i8").tobytes())
            start = int(offsets[-1])
        file.write(np.array([start], dtype="<i8").tobytes())

    safe_files.replace(cache.folder / "tokens.bin", write_tokens)
    if not totals.documents:
        raise no_documents(cache.name, totals.skipped, cache.text_key, lines)
    safe_files.replace(cache.folder / "offsets.npy", write_offsets)
    cache.check_unchanged()
    _write_meta(cache, lines, totals, digest.hexdigest())


def _write_meta(cache: Cache, lines: Lines, totals: Totals, tokens_sha256: str) -> None:
    name = os.path.realpath(cache.files[0]) if len(cache.files) == 1 else cache.name
    meta = Meta(
        format=FORMAT,
        source=printable(name),
        tokenizer=cache.tokenizer.name,
        vocab_size=cache.tokenizer.vocab_size,
        dtype=cache.dtype.name,
        lines=len(lines),
        documents=totals.documents,
        tokens=totals.tokens,
        skipped=totals.skipped,
        first_skipped={reason: printable(lines.explain(line, reason)) for reason, line in totals.first.items()},
        fingerprint=cache.index().fingerprint,
        tokens_sha256=tokens_sha256,
    )
    safe_files.atomic_write(cache.folder / "meta.json", meta.model_dump_json(indent=2) + "\n")


def sweep(cache: Cache) -> None:
    """Remove files that a complete cache does not need, and leftovers of killed builds."""
    for name in ("claims", "shards"):
        safe_files.remove(cache.folder / name)
    for stray in cache.folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # belongs to another user
            stray.unlink()
