"""Metadata of held-out documents: the size of their text in bytes, and their domain."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from ablatrix.trainer.data import tokenizer
from ablatrix.trainer.data.corpus_files import find_files, is_flat
from ablatrix.trainer.data.encoder import exact_tokenizer
from ablatrix.trainer.data.sampling import PADDING
from ablatrix.trainer.data.shard_claims import Claims
from ablatrix.trainer.data.token_cache import Cache, read_record
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.files import atomic_write

if TYPE_CHECKING:
    import numpy as np

    from ablatrix.trainer.config import DataConfig
    from ablatrix.trainer.data.corpus import Lines
    from ablatrix.trainer.data.heldout import HeldOut, Windows


logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1


class Records(BaseModel):
    """bytes: length of each document in UTF-8; domains: domain of each document, '' if it has none."""

    bytes: list[int]
    domains: list[str]


def read_records(config: DataConfig, cache_dir: Path, text: HeldOut, windows: Windows) -> Records:
    """Return the records of the documents in an evaluation set, in the same order.

    Reads only their lines. In a compressed corpus everything before them must be read too: one run does this, and saves
    the records next to the tokens. If the cache has lost its index (a purge), bytes are counted in the decoded tokens,
    and domains are unknown. Raises DataError if the corpus cannot be read.
    """
    if is_flat(find_files(config)[0]):
        return _decode(config, cache_dir, (y[y != PADDING] for y in windows.y))
    cache = Cache.of(config, cache_dir)
    try:
        lines = cache.lines()
    except (RunError, OSError):
        if config.domain_key:
            logger.warning(f"{cache.folder}: the index was removed, so the domains of held-out documents are not known")
        return _decode(config, cache_dir, (text.store.document(line) for line in windows.lines.tolist()))
    if all(file.direct for file in lines.source.files):
        return _read_lines(lines, config, windows)
    key = hashlib.sha256(config.domain_key.encode() + windows.lines.tobytes()).hexdigest()[:16]
    return read_once(cache.folder / f"heldout-{key}.json", lambda: _read_lines(lines, config, windows))


def read_once(path: Path, read: Callable[[], Records]) -> Records:
    """Return the records from a file; if it does not exist, one of the runs that need it creates it with `read`."""
    try:
        with Claims(path.parent) as claims:
            while (records := read_record(path, Records)) is None:
                if claims.acquire(f".{path.stem}.claim", take_over=True):
                    found = read_record(path, Records) or read()
                    atomic_write(path, found.model_dump_json())
                else:
                    time.sleep(POLL_SECONDS)
    except OSError:  # another user's folder, or a full disk
        return read_record(path, Records) or read()
    return records


def _read_lines(lines: Lines, config: DataConfig, windows: Windows) -> Records:
    sizes, domains = [], []
    for line in windows.lines.tolist():
        record = lines.record(line)
        sizes.append(len(str(record[config.text_key]).encode("utf-8", "replace")))
        domains.append(find_domain(record, config.domain_key) if config.domain_key else "")
    lines.source.close()
    return Records(bytes=sizes, domains=domains)


def find_domain(record: dict[str, Any], key: str) -> str:
    """Return the value at a dotted key as a string, '' if there is none."""
    value: Any = record
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return "" if value is None or isinstance(value, dict | list) else str(value)


def _decode(config: DataConfig, cache_dir: Path, documents: Iterable[np.ndarray]) -> Records:
    """Return records with the size in bytes of each document's decoded text."""
    decoder = exact_tokenizer(tokenizer.find(config.tokenizer, cache_dir).folder / "tokenizer.json")
    texts = [decoder.decode(ids.tolist(), skip_special_tokens=False) for ids in documents]
    return Records(bytes=[len(text.encode("utf-8", "replace")) for text in texts], domains=[""] * len(texts))
