"""Usage of a corpus: how much of it is trained on, and what is skipped or too short."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ablatrix.trainer.data.batches import split_lines
from ablatrix.trainer.data.corpus import Lines, describe_skipped, no_documents
from ablatrix.trainer.data.corpus_files import are_whole_texts, describe_files, find_files, find_validation, is_flat
from ablatrix.trainer.data.encoder import Encoder
from ablatrix.trainer.data.flat_bin import FlatStore
from ablatrix.trainer.data.sampling import Packing, TrainingText
from ablatrix.trainer.data.text_source import open_source
from ablatrix.trainer.data.token_cache import Cache
from ablatrix.trainer.data.token_store import SCAN, CompleteStore, TokenStore

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig

BEGINNING = 1 << 20  # bytes of a large corpus that are checked before anything is queued
ENOUGH = 0.9  # warn if a smaller share of the documents or tokens can be drawn
SAMPLED_GROUPS = 256  # evenly spaced packing groups from which the padding of a large corpus is estimated
MOST_SKIPPED = 0.1  # warn if a larger share of the lines is too short


@dataclass(frozen=True)
class Usage:
    """Documents and tokens of the training split; usable_* count only documents that data.sampling can reach."""

    documents: int
    tokens: int
    usable_documents: int
    usable_tokens: int

    @classmethod
    def of(cls, store: TokenStore, config: DataConfig) -> Usage:
        """Count the usage of a complete store in one pass over its offsets."""
        lines = split_lines(store, config)
        scans = (range(start, min(lines.stop, start + SCAN)) for start in range(lines.start, lines.stop, SCAN))
        return cls.of_counts(map(store.counts, scans), config)

    @classmethod
    def of_counts(cls, parts: Iterable[np.ndarray], config: DataConfig) -> Usage:
        """Sum up the usage over the token counts of all lines, given in parts of (n,) int64."""
        totals = np.zeros(4, dtype=np.int64)
        for counts in parts:
            usable = counts[counts > (config.block_size if config.sampling == "document" else 0)]
            totals += [np.count_nonzero(counts), counts.sum(), len(usable), usable.sum()]
        return cls(*map(int, totals))


def describe_usage(store: TokenStore, config: DataConfig) -> tuple[str, list[str]]:
    """Return a sentence about the content of a complete store, and warnings about text that is never trained on."""
    usage, length = Usage.of(store, config), config.block_size + 1
    if isinstance(store, FlatStore):
        text = f"{store.name}: {usage.tokens:,} tokens to train on, stored as {store.dtype.name}"
        return text + _describe_validation(config), []
    share = usage.usable_tokens / max(usage.tokens, 1)
    documents = "1 document" if usage.documents == 1 else f"{usage.documents:,} documents"
    text = f"{store.name}: {documents} of {usage.tokens:,} tokens to train on; "
    if config.sampling == "stream":
        text += f"all are drawn, as windows of {length} tokens of one stream"
    elif config.sampling == "packed":
        full = _fullness(store, config)
        text += f"all are drawn, in blocks of {length - 1} tokens that are {full:.0%} full"
    else:
        text += f"{usage.usable_documents:,} of them, with {share:.1%} of the tokens, fill a window of {length} tokens"
    warnings = _warn_of_unreached(store.name, usage, config)
    held_out = store.n_documents - usage.documents
    if config.split == "train" and not config.test_file and held_out > usage.documents:
        warnings.append(
            f"{store.name}: data.test_size holds out {held_out:,} documents and leaves {documents} to train on"
        )
    skipped = describe_skipped(store.name, store.n_lines, store.skipped, store.first_skipped)
    left_out = sum(store.skipped.values()) - store.skipped.get("blank", 0)
    if skipped and (left_out > MOST_SKIPPED * store.n_lines or not {"blank", "too_short"} >= store.skipped.keys()):
        warnings.append(skipped)
    elif skipped:
        text += f"; {skipped.partition(': ')[2]}"
    return text + _describe_validation(config), warnings


def _warn_of_unreached(name: str, usage: Usage, config: DataConfig) -> list[str]:
    """Return a warning if data.sampling misses a large part of the documents."""
    share = usage.usable_tokens / max(usage.tokens, 1)
    if share >= ENOUGH and usage.usable_documents >= ENOUGH * usage.documents:
        return []
    return [
        f"{name}: only {usage.usable_documents:,} of {usage.documents:,} documents ({share:.1%} of the tokens) have "
        f"the {config.block_size + 1} tokens of a window; the others are never trained on; set data.sampling to "
        "packed or stream, or lower data.block_size"
    ]


def find_unreached(config: DataConfig, cache_dir: Path) -> list[str]:
    """Return a warning if data.sampling misses a large part of the documents. Writes nothing.

    Documents are counted in the token cache or, until it is complete, at the beginning of the corpus. Raises DataError
    (no such file) or OfflineCacheError (no such tokenizer).
    """
    files = find_files(config)
    if is_flat(files[0]) or config.sampling != "document":
        return []
    cache = Cache.of(config, cache_dir)
    if meta := cache.meta():
        return _warn_of_unreached(cache.name, Usage.of(CompleteStore(cache.folder, meta), config), config)
    lines, encoder = read_beginning(config), Encoder(cache.tokenizer)
    texts = (lines.text(line)[0] for line in range(len(lines)))
    counts = np.array([len(encoder.encode(text)) for text in texts if text], dtype=np.int64)
    return _warn_of_unreached(f"{cache.name} (its beginning)", Usage.of_counts([counts], config), config)


def _describe_validation(config: DataConfig) -> str:
    """Return which files are evaluated, or are next to the corpus but unused, as the end of a sentence."""
    if config.test_file:
        corpus = config.test_corpus
        return f"; evaluated on {describe_files(corpus, find_files(corpus))}"
    unused = find_validation(config)
    return f"; {unused[0].name} is not used: data.test_size holds out documents of the corpus itself" if unused else ""


def count_rows(store: TokenStore, config: DataConfig) -> float:
    """Return the number of batch rows in one pass over the reachable tokens of a complete store.

    Packed blocks also have separators and padding; for a large corpus the padding is estimated.
    """
    usage = Usage.of(store, config)
    if config.sampling != "packed":
        return usage.usable_tokens / config.block_size
    used = usage.tokens + usage.documents  # plus one separator per document
    return used / config.block_size / _fullness(store, config)


def _fullness(store: TokenStore, config: DataConfig) -> float:
    """Return the share of packed blocks that is not padding, measured on at most about SAMPLED_GROUPS groups."""
    text = TrainingText(store, split_lines(store, config), config.separator or 0)  # any separator will do
    packing = Packing(text, config.block_size)
    step = -(-len(packing.groups) // SAMPLED_GROUPS)
    blocks = [block for group in packing.groups[::step] for block in packing.blocks(group)]
    return sum(piece.length for block in blocks for piece in block) / max(1, len(blocks) * config.block_size)


def read_beginning(config: DataConfig) -> Lines:
    """Return the lines that end within the first BEGINNING bytes of a corpus."""
    files = find_files(config)
    source = open_source(files, are_whole_texts(config, files))
    starts = np.flatnonzero(np.frombuffer(source.read(0, BEGINNING), dtype=np.uint8) == ord("\n")) + 1
    return Lines(source, np.concatenate([[0], starts]), config.text_key)


def check_beginning(config: DataConfig) -> list[str]:
    """Return a warning if many of the first lines of a large corpus are skipped.

    Raises DataError if none of them is a document.
    """
    files, lines = find_files(config), read_beginning(config)
    skipped: dict[str, int] = {}
    first: dict[str, str] = {}
    for line in range(len(lines)):
        _, reason = lines.text(line)
        if reason:
            skipped[reason] = skipped.get(reason, 0) + 1
            first.setdefault(reason, lines.explain(line, reason))
    name = f"{describe_files(config, files)} (its beginning)"
    if len(lines) and sum(skipped.values()) == len(lines):
        raise no_documents(name, skipped, config.text_key, lines)
    few = sum(skipped.values()) - skipped.get("blank", 0) <= MOST_SKIPPED * len(lines)
    return [] if few else [describe_skipped(name, len(lines), skipped, first)]
