"""Preflight: everything that can be known to fail before it is queued. All findings at once, each with what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from ablatrix.models.config import count_parameters, without_custom_components
from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.store import job_command
from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.orchestrator.study import exported_env, run_config, value_origins
from ablatrix.orchestrator.study.experiment import Loaded
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.orchestrator.submit import command_preflight
from ablatrix.trainer.callbacks import custom
from ablatrix.trainer.config import RunConfig, tokenizer_names
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.config.optimization import branch_step
from ablatrix.trainer.data import tokenizer
from ablatrix.trainer.data.corpus_files import file_stamp, find_files, is_flat, total_size
from ablatrix.trainer.data.formats import detect
from ablatrix.trainer.rundir.console import say
from ablatrix.trainer.rundir.errors import AblatrixError, ConfigError, OfflineCacheError, RunError, UserError
from ablatrix.trainer.rundir.files import open_for_reading

# Tokens of well-known tokenizers, so that a study can be planned before its cache is filled
VOCABULARIES = {"gpt2": 50257, "sample": 4096}
SMALL_CORPUS = 64 << 20  # bytes; such a file is tokenised by the check itself, in seconds
TAIL = 1 << 16
MOST_TOLD = 6  # lines about corpora
MOST_PROBED = 64  # cells; a larger design is shown by its single features
BYTES_PER_PARAMETER = 4  # float32


def vocabulary(config: RunConfig) -> int:
    """Number of tokens of a configuration's tokenizer. Raises OfflineCacheError for one that is not in the cache."""
    name = tokenizer_names.canonical(config.data.tokenizer)
    try:
        return tokenizer.find(name, Path(config.system.cache_dir)).vocab_size
    except OfflineCacheError:
        if name in VOCABULARIES:
            return VOCABULARIES[name]
        raise


def preflight(loaded: Loaded, runs: Sequence[Run], launcher: str, chosen: Sequence[Run]) -> None:
    """Raises ConfigError with every finding; creates nothing but a token cache for a small corpus, and that last.

    runs: of the whole study. chosen: those that are to be queued now, which need room on the disk and in the queue.
    """
    if loaded.experiment.command:
        ours: list[Run] = []
        slow: list[Callable[[], Iterable[str]]] = [partial(command_preflight.check, loaded, chosen, launcher)]
    else:
        ours = list(runs)
        slow = [partial(_inputs, loaded, runs), partial(_toggles, loaded, runs)]
    if launcher != "local":
        slow.append(partial(_cluster, loaded, chosen, launcher))
    with ThreadPoolExecutor() as pool:  # each waits for a process of its own
        found = list(pool.map(lambda check: list(check()), slow))
    findings = [*_exports(loaded), *_output(loaded), *_space(loaded, chosen), *chain.from_iterable(found)]
    if not findings:
        findings += _corpora(loaded, ours)
    if findings:
        raise ConfigError(list(dict.fromkeys(findings)))


def _exports(loaded: Loaded) -> Iterator[str]:
    """Variables that the jobs are to get, and this shell does not have."""
    for name in exported_env.unset(loaded.experiment.export):
        yield f"{loaded.at('export')}export: {name} is not set in this shell; set it, or take it out of the list"


def _output(loaded: Loaded) -> Iterator[str]:
    """Can the study's folder be made?"""
    where = loaded.at("output")
    try:
        parent = _existing(loaded.experiment.folder)
    except OSError as error:
        yield f"{where}output: cannot be used: {error.strerror}; choose another `output:`"
        return
    if not parent.is_dir():
        yield f"{where}output: {parent} is a file, not a folder; choose another `output:`"
    elif not os.access(parent, os.W_OK | os.X_OK):
        yield f"{where}output: {parent} cannot be written by you; choose another `output:`"


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _space(loaded: Loaded, runs: Sequence[Run]) -> Iterator[str]:
    """Free space against the checkpoints of all runs. A quota cannot be seen from here."""
    try:
        parent = _existing(loaded.experiment.folder)
    except OSError:
        return  # `_output` has said it
    folder = loaded.experiment.folder
    ours = [(run.id, run.config) for run in runs if isinstance(run.config, RunConfig)]
    needed = sum(max(0, _bytes_kept(config) - _bytes_there(folder / name)) for name, config in ours)
    free = shutil.disk_usage(parent).free
    if needed > free:
        yield (
            f"output: {len(runs)} runs need about {needed / 1e9:.1f} GB for checkpoints, {parent} has "
            f"{free / 1e9:.1f} GB free; choose another `output:` or fewer runs"
        )


def _bytes_there(run_dir: Path) -> int:
    """Bytes of the checkpoints that a stopped or failed run has left: its next attempt replaces them."""
    return sum(path.stat().st_size for path in run_dir.glob("*.pt"))


def _bytes_kept(config: RunConfig) -> int:
    """Of the checkpoints of a run and one being written (weights and two moments each), model.pt and best.pt."""
    checkpoints = config.trainer.save_total_limit + 1 + (branch_step(config.trainer) is not None)
    copies = 3 * checkpoints + 1 + config.trainer.save_best
    return (count_parameters(without_custom_components(config.model)) or 0) * BYTES_PER_PARAMETER * copies


def _inputs(loaded: Loaded, runs: Sequence[Run]) -> Iterator[str]:
    """Tokenizers in the cache and loadable without a network, data files there and whole."""
    for run, config in _distinct(runs):
        at = partial(value_origins.position, loaded, run.features)
        try:
            info = tokenizer.find(config.data.tokenizer, Path(config.system.cache_dir))
            _loads_offline(info)
        except AblatrixError as error:
            yield f"{at('data.tokenizer')}{error}"
        try:
            files = find_files(config.data)
            for path in files:
                check_file(path, alone=len(files) == 1)
        except UserError as error:
            place = at("data.file_path").removesuffix(": ")
            yield f"{error}{_beside(loaded, config)}{f' ({place})' if place else ''}"
        for name in config.callbacks.custom:
            if problem := custom.find_problem(name):
                yield f"{at('callbacks.custom')}callbacks.custom: {name}: {problem}"


def _beside(loaded: Loaded, config: RunConfig) -> str:
    """Return a hint if a relative path that leads nowhere would be right from the experiment file's folder."""
    path = config.data.file_path
    if not isinstance(path, str) or os.path.isabs(path) or os.path.exists(path):
        return ""
    there = loaded.source.path.parent / path
    return f"; paths start at the folder you submit from: write {os.path.relpath(there)}" if there.exists() else ""


def _loads_offline(info: tokenizer.TokenizerInfo) -> None:
    """Load it as a job does, in a process where opening a connection is an error. Raises OfflineCacheError."""
    try:
        _module("ablatrix.trainer.data.tokenizer_check", str(info.folder))
    except RunError as error:
        advice = tokenizer.mend(info.name, info.folder.parent.parent)
        raise OfflineCacheError(f"tokenizer {info.name!r} does not load offline ({error}): {advice}") from None


def _module(name: str, *arguments: str, text: str | None = None) -> str:
    """Output of `python -m name` with the running code. Raises RunError with its last line."""
    environment = {**os.environ, **job_command.environment(code_root(), threads=1)}
    command = [sys.executable, "-P", "-m", name, *arguments]
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise RunError(lines[-1] if lines else f"{name}: exit code {result.returncode}")
    return result.stdout


def _toggles(loaded: Loaded, runs: Sequence[Run]) -> Iterator[str]:
    """Each cell must train differently from the baseline: shown by training a shrunken model of each."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.cell, run)
    baseline = next((run for run in first.values() if not run.features), None)
    cells = [run for run in first.values() if run.features]
    if len(cells) > MOST_PROBED:
        cells = [run for run in cells if len(run.features) == 1][:MOST_PROBED]
    if baseline is None or not cells:
        return
    configs = [run_config.as_tree(run.config) for run in (baseline, *cells)]
    try:
        reference, *others = json.loads(_module("ablatrix.trainer.effect_check", text=json.dumps(configs)))
    except RunError as error:
        yield f"the model cannot be built and trained: {error}"
        return
    for run, signature in zip(cells, others, strict=True):
        if signature == reference:
            settings = ", ".join(f"{key}: {spell(value)}" for key, value in run.overrides.items())
            yield (
                f"{loaded.at('features', run.features[0])}cell {run.cell}: has no effect: with {settings} the model, "
                "its first steps, the learning rates and the batches are the baseline's"
            )


def _cluster(loaded: Loaded, runs: Sequence[Run], launcher: str) -> Iterator[str]:
    """Would Slurm take these jobs?"""
    from ablatrix.orchestrator.submit import slurm_preflight

    if not commands.available():
        yield f"launcher {launcher}: there is no sbatch on this machine; use --launcher local"
        return
    try:
        yield from slurm_preflight.check_jobs(loaded, runs, launcher)
    except commands.NoAnswerError as error:  # nothing is wrong with the file
        raise RunError(f"Slurm does not answer ({error}); nothing was queued, run the command again later") from None
    except commands.ControllerError as error:
        yield f"{loaded.at('slurm')}slurm: {error}"


def _corpora(loaded: Loaded, runs: Sequence[Run]) -> Iterator[str]:
    """Can batches be drawn? A small corpus is tokenised for it, which its runs need anyway."""
    from ablatrix.trainer.data import batches

    told: dict[str, None] = {}
    for run, config in _distinct(runs):
        try:
            if total_size(config.data) > SMALL_CORPUS and not is_flat(find_files(config.data)[0]):
                told |= dict.fromkeys(f"warning: {text}" for text in batches.check_beginning(config.data))
                continue
            store = batches.open_tokens(config.data, Path(config.system.cache_dir))
            batches.Batches(store, config.data, config.trainer.batch_size, config.system.seed)
            text, warnings = batches.describe_usage(store, config.data)
            told |= dict.fromkeys([text, *(f"warning: {warning}" for warning in warnings)])
        except UserError as error:
            yield f"{value_origins.position(loaded, run.features, 'data.file_path')}{error}"
    for line in list(told)[:MOST_TOLD]:
        say(line)


def _distinct(runs: Sequence[Run]) -> Iterable[tuple[Run, RunConfig]]:
    """One run, with its configuration, for each way of reading data."""
    found: dict[Any, tuple[Run, RunConfig]] = {}
    for run in runs:
        if isinstance(run.config, RunConfig):
            found.setdefault((run.config.data, run.config.system.cache_dir), (run, run.config))
    return found.values()


def check_file(path: Path, alone: bool = True) -> None:
    """Raises UserError for a data file that is missing, unreadable, no JSON lines, or whose end is cut off.

    alone: an empty one is refused too; of several some may be empty.
    """
    size, _ = file_stamp(path)
    if size == 0 and not alone:
        return
    if size == 0:
        raise UserError(f"{path}: data.file_path is an empty file; it needs one JSON object per line")
    try:
        with open_for_reading(path) as file:
            file.seek(max(0, size - TAIL))
            tail = file.read()
    except OSError as error:
        raise UserError(f"{str(path)!r}: data.file_path cannot be read: {error.strerror}") from None
    if not is_flat(path) and detect(path).direct:
        _check_last_line(path, tail, whole=size <= TAIL)


def _check_last_line(path: Path, tail: bytes, whole: bool) -> None:
    """A download that broke off ends within an object. whole: `tail` is all of the file."""
    *before, last = tail.split(b"\n")
    if not last.lstrip().startswith(b"{") or (not before and not whole) or _is_json(last):
        return
    if len(before) > (not whole) and not _is_json(before[-1]):
        return  # not only the last line is wrong
    writing = (
        " (it was changed just now: is it still being written?)" if time.time() - path.stat().st_mtime < 60 else ""
    )
    raise UserError(
        f"{path}: the last line is cut off, so the file is not complete{writing}; fetch it again, or drop that line"
    )


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode(errors="replace"))
    except ValueError:
        return False
    return True
