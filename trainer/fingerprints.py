"""Fingerprints of what a run reads, the corpus and the tokenizer, by which a change under the same name is noticed.

Cheap enough for every submit: of a large corpus only pieces are read. Free of torch and numpy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer import tokenizer
from trainer.config import RunConfig
from trainer.errors import AblatrixError
from trainer.runlog import opened

# In summary.json, provenance.json and checkpoints; DATA, of every line, is known once the corpus has been read
CORPUS, TOKENIZER, DATA = "corpus_fingerprint", "tokenizer_fingerprint", "data_fingerprint"
SETTINGS = {CORPUS: "data.file_path", TOKENIZER: "data.tokenizer"}
PIECE = 1 << 20  # bytes
PIECES = 64  # evenly spaced; a file up to 64 MiB is read whole


def of_inputs(config: RunConfig) -> dict[str, str]:
    """Return the fingerprints of a run's corpus and tokenizer; what cannot be read is left out."""
    found = {}
    corpus = of_file(Path(config.data.file_path).expanduser())
    if corpus:
        found[CORPUS] = corpus
    with contextlib.suppress(AblatrixError):
        found[TOKENIZER] = tokenizer.find(config.data.tokenizer, Path(config.system.cache_dir)).sha256
    return found


def of_file(path: Path) -> str | None:
    """Return the SHA-256 of a file's size and of pieces of it, the first and the last included; None if unreadable.

    Copying or touching a file does not change it; appending, replacing or rewriting it does.
    """
    try:
        with opened(path, buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"{size} ".encode())
            for start in _starts(size):
                digest.update(os.pread(file.fileno(), PIECE, start))
            return digest.hexdigest()
    except (OSError, ValueError):
        return None


def _starts(size: int) -> list[int]:
    if size <= PIECE * PIECES:
        return list(range(0, size, PIECE))
    return [k * (size - PIECE) // (PIECES - 1) for k in range(PIECES)]


def changed(before: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """Return the settings whose file has another content `now`; what only one side knows counts as the same."""
    different = {name for name in (*SETTINGS, DATA) if name in before and before[name] != now.get(name, before[name])}
    found = [setting for name, setting in SETTINGS.items() if name in different]
    return found or ([SETTINGS[CORPUS]] if different else [])
