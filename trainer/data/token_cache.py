"""The token cache of a corpus: its folder, its files, how they come to be. Free of torch.

    <cache_dir>/tokens/<key>/    key: from path, size and time of the file, text key, tokenizer and format
        index.json, lines.u64    number of lines and fingerprint; where each line starts (one scan of the file)
        shards/, claims/         tokens of consecutive lines while the cache is being built, and who makes which
        tokens.bin               the ids of all documents, one after the other, uint16 or uint32
        offsets.npy              int64, n_lines + 1: line i is tokens[offsets[i]:offsets[i + 1]]; empty where skipped
        meta.json                written last: with it the cache is complete, without it nothing above is believed

Every file appears whole, by a rename, and is the same whoever writes it. So any number of jobs on any hosts may build
one cache together, and any of them may be killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ablatrix.trainer.rundir.files import atomic_write
from ablatrix.trainer.rundir.files import open_for_reading
from ablatrix.trainer.config import DataConfig
from ablatrix.trainer.data.corpus import Lines, document_text, fingerprint, no_documents, scan_lines
from ablatrix.trainer.data.corpus_files import describe_files, file_stamp, find_files
from ablatrix.trainer.data.encoder import Encoder, token_dtype
from ablatrix.trainer.data.formats import TextFile, detect
from ablatrix.trainer.data.text_source import Source
from ablatrix.trainer.data.token_store import offsets_start, write_offsets_header
from ablatrix.trainer.data.tokenizer import TokenizerInfo, find
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import DataError, RunError
from ablatrix.trainer.rundir.files import is_own, open_file, remove

FORMAT = 2
OLD_FORMAT = 1  # of a single file; complete caches are still used
# Bytes of the (decompressed) file in a shard: about a second of work for one core; less where the file is small, so
# that all cores have work.
SHARD_BYTES = (1 << 20, 16 << 20)
SHARDS = 64
# Where tokens are kept if system.cache_dir is another user's or read-only
OWN_CACHES = (".cache/ablatrix", "~/.cache/ablatrix")
META_KEYS = {"lines", "documents", "tokens", "vocab_size", "dtype", "skipped", "source", "fingerprint", "offsets_bytes"}


@dataclass(frozen=True)
class Cache:
    """A corpus under one tokenizer, and the folder where its tokens are kept."""

    files: tuple[Path, ...]
    name: str  # of the corpus, for people
    text_key: str
    tokenizer: TokenizerInfo
    folder: Path
    stamps: tuple[tuple[int, int], ...]  # size and mtime_ns of each file

    @classmethod
    def of(cls, config: DataConfig, cache_dir: Path) -> Cache:
        """Raises DataError (no such file) or OfflineCacheError (no such tokenizer)."""
        files, tokenizer = find_files(config), find(config.tokenizer, cache_dir)
        stamps = tuple(file_stamp(path) for path in files)
        name, tokens = describe_files(config, files), Path(cache_dir) / "tokens"
        new, old = (
            cls(files, name, config.text_key, tokenizer, tokens / key, stamps)
            for key in (_key(form, files, stamps, config.text_key, tokenizer.sha256) for form in (FORMAT, OLD_FORMAT))
        )
        if len(files) == 1 and _is_trusted(old.meta()):
            return old
        others = os.path.isdir(new.folder) and not is_own(new.folder)  # whoever builds it is waited for
        if not others and new.meta() is None and not is_writable(new.folder):
            own = next((place for place in map(Path, OWN_CACHES) if is_writable(place.expanduser())), None)
            return replace(new, folder=own.expanduser().absolute() / "tokens" / new.folder.name) if own else new
        return new

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.stamps)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a token id on disk."""
        return token_dtype(self.tokenizer.vocab_size)

    @property
    def claims(self) -> Path:
        """Folder of the claims of those who build."""
        return self.folder / "claims"

    def meta(self) -> dict[str, Any] | None:
        """meta.json of a complete cache, None while there is none."""
        meta = run_files.read_json(self.folder / "meta.json")
        if meta is None:
            return None
        if not meta.keys() >= META_KEYS:  # another version's
            return None
        sizes = {"tokens.bin": meta["tokens"] * self.dtype.itemsize, "offsets.npy": meta["offsets_bytes"]}
        for name, size in sizes.items():
            try:
                if (self.folder / name).stat().st_size != size:
                    return None
            except OSError:
                return None
        return meta if offsets_start(self.folder / "offsets.npy", meta["lines"]) else None

    def scanned(self) -> bool:
        """Whether the index is there and is one."""
        return run_files.read_json(self.folder / "index.json") is not None

    def index(self) -> dict[str, Any]:
        """index.json. Raises RunError while the file was not scanned."""
        index = run_files.read_json(self.folder / "index.json")
        if index is None:
            raise RunError(f"{self.folder}: the index is missing; start the run again")
        return index

    def lines(self) -> Lines:
        """The corpus by lines; needs the index."""
        index = self.index()
        starts = np.memmap(self.folder / "lines.u64", dtype="<u8", mode="r", shape=(index["lines"] + 1,))
        return Lines(self.source(index), starts, self.text_key)

    def source(self, index: Mapping[str, Any]) -> Source:
        """The text of the corpus. index: what an earlier scan found, {} before it. Raises DataError."""
        if "layers" not in index:
            return Source([detect(path) for path in self.files])
        layers = map(tuple, index["layers"])
        return Source([TextFile(*file) for file in zip(self.files, layers, strict=True)], index["starts"])

    def unchanged(self) -> None:
        """Raises DataError where a file is no longer the one that this cache is of."""
        for path, stamp in zip(self.files, self.stamps, strict=True):
            if file_stamp(path) != stamp:
                raise DataError(f"{path}: changed while it was being read; start again when it is complete")

    def shard_file(self, shard: int) -> Path:
        """Where the tokens of one shard appear."""
        return self.folder / "shards" / f"{shard:05d}"

    def shard_count(self) -> int:
        """Shard k holds the lines that start in bytes [k, k + 1) * shard_bytes of the file."""
        index = self.index()
        return -(-index["bytes"] // index["shard_bytes"])

    def shard_lines(self, lines: Lines, shard: int) -> range:
        """The lines of one shard; none where a longer line spans it."""
        size = self.index()["shard_bytes"]
        bounds = np.array([shard * size, (shard + 1) * size], dtype=np.uint64)
        first, last = np.searchsorted(lines.starts[:-1], bounds)
        return range(int(first), int(last))

    def shards_done(self) -> set[int]:
        """Numbers of the shards that are there. Raises FileNotFoundError once they were joined."""
        with os.scandir(self.folder / "shards") as found:
            return {int(e.name) for e in found if e.name.isdigit() and e.is_file(follow_symlinks=False)}

    def has_shard(self, shard: int) -> bool:
        """Whether a shard is there: a link in its place would be waited for without end."""
        path = self.shard_file(shard)
        return path.is_file() and not path.is_symlink()


def _key(form: int, files: Sequence[Path], stamps: Sequence[tuple[int, int]], *salt: str) -> str:
    marks = [[os.path.realpath(path), *stamp] for path, stamp in zip(files, stamps, strict=True)]
    identity = [form, *(marks[0] if form == OLD_FORMAT else [marks]), *salt]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]


def _is_trusted(meta: dict[str, Any] | None) -> bool:
    """True if a cache of the old format holds what its file does: JSON arrays were mostly taken for broken lines."""
    return meta is not None and meta["skipped"].get("not_json", 0) <= meta["documents"]


def is_writable(folder: Path) -> bool:
    """True if a folder can be made or written to, as far as permissions tell."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    return not there.is_dir() or os.access(there, os.W_OK | os.X_OK)  # a file in the way is told when it is met


@contextlib.contextmanager
def appearing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A file to write that appears under its name, whole, when the block ends well; durable: also after a power cut."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with os.fdopen(open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL), "w+b") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_index(cache: Cache, report: Any) -> None:
    """Scan the file for line starts and write index.json and lines.u64. report: called with the bytes read."""
    source = cache.source({})
    with appearing(cache.folder / "lines.u64") as file:
        lines = scan_lines(source, lambda starts: file.write(starts.astype("<u8").tobytes()), report)
    cache.unchanged()
    if not lines:
        raise DataError(f"{cache.name}: the file is empty; it must hold one JSON object per line")
    starts = np.memmap(cache.folder / "lines.u64", dtype="<u8", mode="r")
    step = 1 << 20
    lengths = (np.diff(starts[k : k + step + 1]) for k in range(0, lines, step))
    mark = fingerprint(source, lengths, cache.text_key, cache.tokenizer.sha256)
    size = int(starts[-1])
    shard_bytes = min(max(size // SHARDS, SHARD_BYTES[0]), SHARD_BYTES[1])
    index = {"lines": lines, "bytes": size, "shard_bytes": shard_bytes, "fingerprint": mark}
    index |= {"starts": source.starts, "layers": [file.layers for file in source.files]}
    source.close()
    atomic_write(cache.folder / "index.json", json.dumps(index))


@dataclass
class Shard:
    """Tokens of consecutive lines. counts: tokens of each line, 0 where it was skipped.

    skipped: number of lines by reason; first: number of the first line of each reason.
    """

    counts: np.ndarray
    tokens: np.ndarray
    skipped: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)

    @cached_property
    def offsets(self) -> np.ndarray:
        """(lines + 1,) where each line's tokens start."""
        return np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])

    def write(self, path: Path) -> None:
        """One line of JSON, the counts as uint32, the tokens."""
        head = {"lines": len(self.counts), "tokens": len(self.tokens), "skipped": self.skipped}
        head["first"] = self.first
        with appearing(path, durable=False) as file:  # `open_shard` notices what a power cut left
            file.write(json.dumps(head).encode() + b"\n")
            file.write(self.counts.astype("<u4").tobytes())
            file.write(self.tokens.tobytes())

    @classmethod
    def read(cls, path: Path, dtype: np.dtype[Any]) -> Shard:
        """Raises FileNotFoundError where the shard is not there (any more)."""
        file, counts, head = open_shard(path, dtype)
        with file:
            return cls(
                counts, np.fromfile(file, dtype=dtype, count=head["tokens"]), head["skipped"], head.get("first", {})
            )


def open_shard(path: Path, dtype: np.dtype[Any]) -> tuple[BinaryIO, np.ndarray, dict[str, Any]]:
    """(file at the first token, counts, head) of a shard. Raises FileNotFoundError, also where it is not whole."""
    file = open_for_reading(path)
    try:
        head = json.loads(file.readline())
        counts = np.fromfile(file, dtype="<u4", count=head["lines"])
        whole = os.fstat(file.fileno()).st_size == file.tell() + head["tokens"] * dtype.itemsize
    except ValueError:
        whole = False
    if not whole:
        file.close()
        with contextlib.suppress(PermissionError):  # of another user, who will see it too
            path.unlink(missing_ok=True)
        raise FileNotFoundError(path)
    return file, counts, head


def encode_shard(lines: Lines, numbers: range, encoder: Encoder) -> Shard:
    """Tokenise the lines of one shard."""
    counts = np.zeros(len(numbers), dtype=np.uint32)
    parts: list[np.ndarray] = []
    skipped: dict[str, int] = {}
    first: dict[str, int] = {}
    begin = int(lines.starts[numbers.start])
    raw = lines.source.read(begin, int(lines.starts[numbers.stop]) - begin)
    for k, line in enumerate(numbers):
        start = int(lines.starts[line]) - begin
        text, reason = document_text(raw[start : start + lines.size(line)], lines.text_key)
        if text is None:
            skipped[reason] = skipped.get(reason, 0) + 1
            first.setdefault(reason, line)
        else:
            parts.append(encoder.encode(text))
            counts[k] = len(parts[-1])
    tokens = np.concatenate(parts) if parts else np.zeros(0, dtype=encoder.dtype)
    return Shard(counts, tokens, skipped, first)


def join_shards(cache: Cache, lines: Lines) -> None:
    """Make tokens.bin, offsets.npy and meta.json from all shards, then remove the shards.

    Raises DataError where there is not one document.
    """
    n_lines, total, longest, documents = len(lines), 0, 0, 0
    skipped: dict[str, int] = {}
    first: dict[str, int] = {}
    digest = hashlib.sha256()
    with appearing(cache.folder / "tokens.bin") as tokens, appearing(cache.folder / "offsets.npy") as offsets:
        write_offsets_header(offsets, n_lines)
        for number in range(cache.shard_count()):
            shard = Shard.read(cache.shard_file(number), cache.dtype)
            offsets.write((shard.offsets[:-1] + total).astype("<i8").tobytes())
            data = shard.tokens.tobytes()
            tokens.write(data)
            digest.update(data)
            total += len(shard.tokens)
            documents += int(np.count_nonzero(shard.counts))
            longest = max(longest, int(shard.counts.max(initial=0)))
            for reason, count in shard.skipped.items():
                skipped[reason] = skipped.get(reason, 0) + count
            first = shard.first | first
        offsets.write(np.array([total], dtype="<i8").tobytes())
        if not documents:
            raise no_documents(cache.name, skipped, cache.text_key, lines)
        offsets_bytes = offsets.tell()
    cache.unchanged()
    mark = cache.index()["fingerprint"]
    meta = {
        "format": FORMAT,
        "source": _printable_source(cache),
        "size": cache.size,
        "mtime_ns": max(mtime for _, mtime in cache.stamps),
        "text_key": cache.text_key,
        "tokenizer": cache.tokenizer.name,
        "tokenizer_sha256": cache.tokenizer.sha256,
        "vocab_size": cache.tokenizer.vocab_size,
        "dtype": cache.dtype.name,
        "lines": n_lines,
        "documents": documents,
        "tokens": total,
        "longest": longest,
        "skipped": skipped,
        "first_skipped": {reason: lines.explain(line, reason) for reason, line in first.items()},
        "fingerprint": mark,
        "tokens_sha256": digest.hexdigest(),
        "offsets_bytes": offsets_bytes,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    atomic_write(cache.folder / "meta.json", json.dumps(meta, indent=2) + "\n")
    if cache.meta() is None:  # not to be built again for ever
        raise RunError(f"{cache.folder}: meta.json cannot be read back as it was written; set system.cache_dir")


def _printable_source(cache: Cache) -> str:
    """Return what a cache was made of. JSON that is read back holds no name that is not UTF-8."""
    name = os.path.realpath(cache.files[0]) if len(cache.files) == 1 else cache.name
    return name.encode("utf-8", "backslashreplace").decode()


def sweep(cache: Cache) -> None:
    """Remove what a complete cache does not need, and what killed builds left."""
    for name in ("claims", "shards"):
        remove(cache.folder / name)
    for stray in cache.folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another user's
            stray.unlink()
