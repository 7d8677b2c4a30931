"""Preflight of the inputs: tokenizers load offline, data files exist and are complete, callbacks import."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.study import value_origins
from ablatrix.orchestrator.study.matrix import first_of_cells
from ablatrix.trainer.callbacks import custom
from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.data import tokenizer
from ablatrix.trainer.data.corpus_files import file_stamp, find_files, is_flat, total_size
from ablatrix.trainer.data.formats import detect, is_json
from ablatrix.trainer.rundir.errors import AblatrixError, ConfigError, OfflineCacheError, RunError, UserError
from ablatrix.trainer.rundir.files import open_for_reading
from ablatrix.trainer.rundir.program import run_module

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.experiment import Loaded
    from ablatrix.orchestrator.study.matrix import Run
    from ablatrix.trainer.config import DataConfig

SMALL_CORPUS = 64 << 20  # bytes; the check itself tokenizes a corpus up to this size, in seconds
TAIL = 1 << 16  # bytes
MOST_LINES = 6  # of output about corpora
RECENT_SECONDS = 60  # a file changed more recently may still be being written


def check_inputs(loaded: Loaded, runs: Sequence[Run]) -> Iterator[str]:
    """Yield what is wrong with tokenizers, data files and custom callbacks."""
    for run, config in _distinct(runs):
        at = partial(value_origins.position, loaded, run.features)
        try:
            info = tokenizer.find(config.data.tokenizer, Path(config.system.cache_dir))
            _require_offline(info)
        except AblatrixError as error:
            yield f"{at('data.tokenizer')}{error}"
        yield from _check_files(config.data, at("data.file_path"), _hint_at_folder(loaded, config))
        if config.data.test_file:
            yield from _check_files(config.data.test_corpus, at("data.test_file"))
        for name in config.callbacks.custom:
            if problem := custom.find_problem(name):
                yield f"{at('callbacks.custom')}callbacks.custom: {name}: {problem}"


def _check_files(data: DataConfig, position: str, hint: str = "") -> Iterator[str]:
    """Yield what is wrong with the files of a corpus. position: file and line of the setting."""
    try:
        files = find_files(data)
        for path in files:
            check_file(path, data.files_setting, alone=len(files) == 1)
    except UserError as error:
        place = position.removesuffix(": ")
        yield f"{error}{hint}{f' ({place})' if place else ''}"


def check_corpora(loaded: Loaded, runs: Sequence[Run]) -> list[str]:
    """Return lines that describe the corpora. Raises ConfigError with every reason why batches cannot be drawn.

    Writes the token cache of a small corpus, which its runs need anyway; reads only the beginning of a large one.
    """
    from ablatrix.orchestrator.submit import heldout_preflight  # numpy takes a while to import
    from ablatrix.trainer.data import batches, corpus_usage
    from ablatrix.trainer.data.tokens import open_tokens

    lines: list[str] = []
    found: list[str] = []
    for run, config in _distinct(runs):
        try:
            if problem := heldout_preflight.find_domain_problem(config.data):
                at = value_origins.position(loaded, run.features, "data.domain_key")
                found.append(f"{at}data.domain_key: {problem}")
                continue
            if total_size(config.data) > SMALL_CORPUS and not is_flat(find_files(config.data)[0]):
                warnings = corpus_usage.check_beginning(config.data)
                warnings += corpus_usage.find_unreached(config.data, Path(config.system.cache_dir))
                warnings += heldout_preflight.describe_small(config, None, SMALL_CORPUS)
                lines += (f"warning: {warning}" for warning in warnings)
                continue
            store = open_tokens(config.data, Path(config.system.cache_dir))
            batches.Batches(store, config.data, config.trainer.batch_size, config.system.seed)
            text, warnings = corpus_usage.describe_usage(store, config.data)
            warnings += heldout_preflight.describe_small(config, store, SMALL_CORPUS)
            lines += [text, *(f"warning: {warning}" for warning in warnings)]
        except UserError as error:
            found.append(f"{value_origins.position(loaded, run.features, 'data.file_path')}{error}")
    if found:
        raise ConfigError(list(dict.fromkeys(found)))
    different = heldout_preflight.describe_different(config for _, config in _distinct(runs))
    lines += (f"warning: {warning}" for warning in different)
    return list(dict.fromkeys(lines))[:MOST_LINES]


def find_unreached(runs: Sequence[Run]) -> list[str]:
    """Return a warning for each corpus most of whose documents are never trained on. Writes nothing.

    A corpus that cannot be read yet (file or tokenizer missing) is left to `check`.
    """
    found: list[str] = []
    for _, config in _distinct(runs):
        if config.data.sampling == "document":
            from ablatrix.trainer.data import corpus_usage  # numpy takes a while to import

            with contextlib.suppress(AblatrixError):
                found += corpus_usage.find_unreached(config.data, Path(config.system.cache_dir))
    return [f"warning: {warning}" for warning in dict.fromkeys(found)][:MOST_LINES]


def check_file(path: Path, setting: str = "data.file_path", alone: bool = True) -> None:
    """Raise UserError for a data file that is missing, unreadable, empty, in the wrong format or truncated.

    setting: the file's name in messages. alone: False if the corpus has several files, some of which may be empty.
    """
    size, _ = file_stamp(path, setting)
    if size == 0 and not alone:
        return
    if size == 0:
        what = "token ids" if is_flat(path) else "text, such as one JSON object per line"
        raise UserError(f"{setting}: {path} is empty; it must contain {what}")
    try:
        with open_for_reading(path) as file:
            file.seek(max(0, size - TAIL))
            tail = file.read()
    except OSError as error:
        raise UserError(f"{setting}: cannot read {str(path)!r}: {error.strerror}") from None
    if not is_flat(path) and detect(path).direct:
        _require_whole_end(path, tail, size <= TAIL)


def _require_whole_end(path: Path, tail: bytes, is_all: bool) -> None:
    """Raise UserError if only the last line is not JSON, as after an interrupted download."""
    *before, last = tail.split(b"\n")
    if not last.lstrip().startswith(b"{") or (not before and not is_all) or is_json(last.decode(errors="replace")):
        return
    if len(before) > (not is_all) and not is_json(before[-1].decode(errors="replace")):
        return
    recent = time.time() - path.stat().st_mtime < RECENT_SECONDS
    writing = " (it was changed just now: is it still being written?)" if recent else ""
    raise UserError(
        f"{path}: the last line is cut off, so the file is not complete{writing}; fetch it again, or drop that line"
    )


def _require_offline(info: tokenizer.TokenizerInfo) -> None:
    """Check the files of a tokenizer, and load them in a process without network access unless `warm-cache` has.

    Raises OfflineCacheError.
    """
    tokenizer.verify(info)
    if tokenizer.was_loaded_offline(info):
        return
    try:
        run_module("ablatrix.trainer.data.tokenizer_check", str(info.folder))
    except RunError as error:
        advice = tokenizer.suggest_warming(info.name, info.folder.parent.parent)
        raise OfflineCacheError(f"tokenizer {info.name!r} does not load offline ({error}): {advice}") from None


def _hint_at_folder(loaded: Loaded, config: RunConfig) -> str:
    """Return a hint if a relative path exists only relative to the experiment file's folder, else ''."""
    path = config.data.file_path
    if not isinstance(path, str) or Path(path).is_absolute() or os.path.exists(path):
        return ""
    there = loaded.source.path.parent / path
    return f"; paths start at the folder you submit from: write {os.path.relpath(there)}" if there.exists() else ""


def _distinct(runs: Sequence[Run]) -> Iterable[tuple[Run, RunConfig]]:
    """Return one run and its configuration for each distinct way of reading data."""
    found: dict[Any, tuple[Run, RunConfig]] = {}
    for run in first_of_cells(runs).values():
        if isinstance(run.config, RunConfig):
            found.setdefault((run.config.data, run.config.system.cache_dir), (run, run.config))
    return found.values()
