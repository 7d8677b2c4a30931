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

from ablatrix.trainer.config import DataConfig, RunConfig
from ablatrix.trainer.data import tokenizer
from ablatrix.trainer.data.corpus_files import find_files
from ablatrix.trainer.rundir.errors import AblatrixError
from ablatrix.trainer.rundir.recorded_inputs import CORPUS, TOKENIZER
from ablatrix.trainer.rundir.files import open_for_reading
from ablatrix.trainer.rundir.recorded_inputs import CORPUS, DATA, TOKENIZER

PIECE = 1 << 20  # bytes
PIECES = 64  # evenly spaced; a file up to 64 MiB is read whole


def of_inputs(config: RunConfig) -> dict[str, str]:
    """Return the fingerprints of a run's corpus and tokenizer; what cannot be read is left out."""
    found = {}
    with contextlib.suppress(AblatrixError):
        corpus = of_corpus(config.data)
        if corpus:
            found[CORPUS] = corpus
    with contextlib.suppress(AblatrixError):
        found[TOKENIZER] = tokenizer.find(config.data.tokenizer, Path(config.system.cache_dir)).sha256
    return found


def of_corpus(data: DataConfig) -> str | None:
    """Return the fingerprint of a corpus: of its file, or of those of its files in their order. None if unreadable.

    Raises DataError where the files cannot be found.
    """
    files = find_files(data)
    if len(files) == 1:
        return of_file(files[0])
    found = [of_file(path, max(2, PIECES // len(files))) for path in files]
    return None if None in found else hashlib.sha256(" ".join(map(str, found)).encode()).hexdigest()


def of_file(path: Path, pieces: int = PIECES) -> str | None:
    """Return the SHA-256 of a file's size and of pieces of it, the first and the last included; None if unreadable.

    Copying or touching a file does not change it; appending, replacing or rewriting it does.
    """
    try:
        with open_for_reading(path, buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256(f"{size} ".encode())
            for start in _starts(size, pieces):
                digest.update(os.pread(file.fileno(), PIECE, start))
            return digest.hexdigest()
    except (OSError, ValueError):
        return None


def _starts(size: int, pieces: int) -> list[int]:
    if size <= PIECE * pieces:
        return list(range(0, size, PIECE))
    return [k * (size - PIECE) // (pieces - 1) for k in range(pieces)]


