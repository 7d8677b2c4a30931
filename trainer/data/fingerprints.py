"""Fingerprints of a run's corpus and tokenizer, used to detect changes in their content.

Two are recorded: `of_corpus` reads only pieces of a large corpus, which makes it cheap enough for every submit;
`of_lines` also covers the length of every line and is computed when the corpus is indexed. Recorded values are compared
with new ones, so the choice of pieces must not change. Torch-free.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.trainer.data import tokenizer
from ablatrix.trainer.data.corpus_files import find_files
from ablatrix.trainer.data.weights_source import Source, find_source
from ablatrix.trainer.rundir.errors import AblatrixError, DataError
from ablatrix.trainer.rundir.files import open_for_reading
from ablatrix.trainer.rundir.recorded_inputs import CORPUS, TEST, TOKENIZER, WEIGHTS

if TYPE_CHECKING:
    import numpy as np

    from ablatrix.trainer.config import DataConfig, RunConfig

PIECE = 1 << 20  # bytes per piece
PIECES = 64  # evenly spaced pieces of a corpus; a corpus of up to 64 MiB is read completely


def of_inputs(config: RunConfig) -> dict[str, str]:
    """Return the fingerprints of a run's corpus, tokenizer and initial weights, without those that cannot be read."""
    found = {}
    with contextlib.suppress(AblatrixError):
        corpus = of_corpus(config.data)
        if corpus:
            found[CORPUS] = corpus
    with contextlib.suppress(AblatrixError):
        test = of_corpus(config.data.test_corpus) if config.data.test_file else None
        if test:
            found[TEST] = test
    with contextlib.suppress(AblatrixError):
        found[TOKENIZER] = tokenizer.find(config.data.tokenizer, Path(config.system.cache_dir)).sha256
    with contextlib.suppress(AblatrixError, OSError):
        if config.model.init_from:
            found[WEIGHTS] = of_weights(find_source(config.model.init_from, Path(config.system.cache_dir)))
    return found


def of_weights(source: Source) -> str:
    """Return the fingerprint of weights and of their model, which weight names do not determine. Raises OSError."""
    return hashlib.sha256(f"{of_file(source.path)} {source.model.model_dump_json()}".encode()).hexdigest()


def of_corpus(data: DataConfig) -> str | None:
    """Return the fingerprint of a corpus; for several files, a hash over theirs in order. None if unreadable.

    Raises DataError if the files cannot be found.
    """
    files = find_files(data)
    if len(files) == 1:
        return of_file(files[0])
    found = [of_file(path, max(2, PIECES // len(files))) for path in files]
    return None if None in found else hashlib.sha256(" ".join(map(str, found)).encode()).hexdigest()


def of_file(path: Path, pieces: int = PIECES) -> str | None:
    """Return the SHA-256 of a file's size and of pieces of it, including the first and last; None if unreadable.

    Copying or touching a file does not change it; appending, replacing or rewriting it does.
    """
    try:
        size = path.stat().st_size
        starts: Sequence[int] = range(0, size, PIECE)
        if len(starts) > pieces:
            starts = [k * (size - PIECE) // (pieces - 1) for k in range(pieces)]
        digest = hashlib.sha256(f"{size} ".encode())
        for piece in _read(path, starts, PIECE):
            digest.update(piece)
        return digest.hexdigest()
    except (OSError, ValueError):
        return None


def of_lines(files: Sequence[Path], lengths: Iterable[np.ndarray], *salt: str) -> str:
    """Return the SHA-256 of `salt`, the length of every line, and pieces of the files.

    Raises DataError if a file cannot be read.
    """
    digest = hashlib.sha256("\0".join(salt).encode())
    for lengths_of_some in lengths:
        digest.update(lengths_of_some.tobytes())
    piece = PIECE if len(files) <= PIECES else PIECE // 16
    most = max(1, PIECES // len(files))
    for path in files:
        try:
            total = -(-path.stat().st_size // piece)
            count = min(total, most)
            for part in _read(path, [k * total // count * piece for k in range(count)], piece):
                digest.update(part)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
    return digest.hexdigest()


def _read(path: Path, starts: Iterable[int], size: int) -> Iterator[bytes]:
    with open_for_reading(path, buffering=0) as file:
        for start in starts:
            yield os.pread(file.fileno(), size, start)
