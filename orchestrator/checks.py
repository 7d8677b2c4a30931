"""Preflight: everything that can be known to fail before it is queued. All findings at once, each with what to do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from orchestrator import slurm
from orchestrator.experiment import Loaded
from orchestrator.matrix import Run
from trainer import tokenizer
from trainer.config import RunConfig
from trainer.errors import AblatrixError, ConfigError, OfflineCacheError, UserError

# Tokens of well-known tokenizers, so that a study can be planned before its cache is filled
VOCABULARIES = {"gpt2": 50257, "sample": 4096}
SMALL_CORPUS = 64 << 20  # bytes; such a file is tokenised by the check itself, in seconds
TAIL = 1 << 16


def vocabulary(config: RunConfig) -> int:
    """Number of tokens of a configuration's tokenizer. Raises OfflineCacheError for one that is not in the cache."""
    name = tokenizer.canonical(config.data.tokenizer)
    try:
        return tokenizer.find(name, Path(config.system.cache_dir)).vocab_size
    except OfflineCacheError:
        if name in VOCABULARIES:
            return VOCABULARIES[name]
        raise


def preflight(loaded: Loaded, runs: Sequence[Run], launcher: str) -> None:
    """Raises ConfigError with every finding; creates nothing but a token cache for a small corpus, and that last."""
    findings = [*_launcher(launcher), *_output(loaded), *_inputs(runs)]
    if not findings:
        findings += _corpora(runs)
    if findings:
        raise ConfigError(list(dict.fromkeys(findings)))


def _launcher(launcher: str) -> Iterator[str]:
    if launcher != "local" and not slurm.available():
        yield f"launcher {launcher}: there is no sbatch on this machine; use --launcher local"


def _output(loaded: Loaded) -> Iterator[str]:
    """Can the study's folder be made?"""
    folder = loaded.experiment.folder.absolute()
    parent = next(path for path in (folder, *folder.parents) if path.exists())
    where = loaded.at("output")
    if not parent.is_dir():
        yield f"{where}output: {parent} is a file, not a folder; choose another `output:`"
    elif not os.access(parent, os.W_OK | os.X_OK):
        yield f"{where}output: {parent} cannot be written by you; choose another `output:`"


def _inputs(runs: Sequence[Run]) -> Iterator[str]:
    """Tokenizers in the cache, data files there and whole."""
    for config in _distinct(runs):
        try:
            tokenizer.find(config.data.tokenizer, Path(config.system.cache_dir))
        except AblatrixError as error:
            yield str(error)
        try:
            check_file(Path(config.data.file_path))
        except UserError as error:
            yield str(error)


def _corpora(runs: Sequence[Run]) -> Iterator[str]:
    """Can batches be drawn? A small corpus is tokenised for it, which its runs need anyway."""
    from trainer import data

    for config in _distinct(runs):
        if Path(config.data.file_path).stat().st_size > SMALL_CORPUS:
            continue
        try:
            store = data.open_tokens(config.data, Path(config.system.cache_dir))
            data.Batches(store, config.data, config.trainer.batch_size, config.system.seed)
        except UserError as error:
            yield str(error)


def _distinct(runs: Sequence[Run]) -> Iterable[RunConfig]:
    """One configuration for each way of reading data."""
    return {(run.config.data, run.config.system.cache_dir): run.config for run in runs}.values()


def check_file(path: Path) -> None:
    """Raises UserError for a data file that is missing, unreadable or empty, or whose last line is cut off."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: data.file_path is a folder; give a JSONL file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise UserError(f"{path}: data.file_path is an empty file; it needs one JSON object per line")
            file.seek(max(0, size - TAIL))
            tail = file.read()
    except FileNotFoundError:
        raise UserError(f"{path}: data.file_path does not exist (looked in {Path.cwd()})") from None
    except OSError as error:
        raise UserError(f"{path}: data.file_path cannot be read: {error.strerror}") from None
    if path.suffix == ".jsonl":
        _check_last_line(path, tail, whole=size <= TAIL)


def _check_last_line(path: Path, tail: bytes, whole: bool) -> None:
    """A download that broke off ends within a line."""
    import json

    last = tail[tail.rfind(b"\n") + 1 :]
    if not last.strip() or (len(last) == len(tail) and not whole):
        return
    try:
        json.loads(last)
    except ValueError:
        raise UserError(
            f"{path}: the last line is cut off, so the file is not complete; fetch it again, or drop that line"
        ) from None
