"""Preflight: find everything that would fail before it is queued, and report all problems at once, with fixes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.models.config import count_parameters, without_custom_components
from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.store import shared_fs
from ablatrix.orchestrator.study import exported_env
from ablatrix.orchestrator.study.matrix import first_of_cells
from ablatrix.orchestrator.study.run_config import require_trainer
from ablatrix.orchestrator.submit import command_preflight, data_preflight, slurm_preflight, weights_preflight
from ablatrix.orchestrator.terminal.printing import list_names
from ablatrix.trainer.config import RunConfig, tokenizer_names
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.config.optimization import branch_step
from ablatrix.trainer.data import tokenizer
from ablatrix.trainer.effect_check import differ_by_settings
from ablatrix.trainer.rundir.console import complain, count
from ablatrix.trainer.rundir.errors import ConfigError, OfflineCacheError, RunError
from ablatrix.trainer.rundir.files import list_folder
from ablatrix.trainer.rundir.program import run_module

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.experiment import Loaded
    from ablatrix.orchestrator.study.matrix import Run

# (vocabulary size, end-of-text token) of well-known tokenizers: studies can be planned before the cache is filled
VOCABULARIES = {"gpt2": (50257, 50256), "sample": (4096, 4095), "bytes": (257, 256)}
MOST_PROBED = 64  # cells; in a larger design only cells with a single feature are probed
BYTES_PER_PARAMETER = 4  # float32


def vocabulary(config: RunConfig) -> tuple[int, int | None]:
    """Return the vocabulary size of a configuration's tokenizer, and its end-of-text token.

    Raises OfflineCacheError if the tokenizer is not cached.
    """
    name = tokenizer_names.canonical(config.data.tokenizer)
    try:
        return tokenizer.vocabulary(config.data, Path(config.system.cache_dir))
    except OfflineCacheError:
        if name in VOCABULARIES:
            return VOCABULARIES[name]
        raise


class Vocabularies:
    """The vocabularies of the tokenizers of a study; each is looked up once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], tuple[int, int | None]] = {}

    def of(self, config: RunConfig) -> tuple[int, int | None]:
        """Return `vocabulary` of a configuration. Raises OfflineCacheError."""
        key = config.data.tokenizer, config.data.sampling, config.system.cache_dir
        if key not in self._known:
            self._known[key] = vocabulary(config)
        return self._known[key]


def check_study(loaded: Loaded, runs: Sequence[Run], launcher: str, chosen: Sequence[Run]) -> list[str]:
    """Return lines that describe the corpora, and warnings. Raises ConfigError with every finding.

    Creates nothing but a token cache for a small corpus, after all other checks.

    runs: all runs of the study. chosen: the runs to be queued now, which need room on the disk and in the queue.
    """
    is_command = bool(loaded.experiment.command)
    _warn_of_notify(loaded)
    checks: list[Callable[[], Iterable[str]]] = [
        partial(_check_exports, loaded),
        partial(_check_output, loaded),
        partial(_check_space, loaded, chosen),
    ]
    if is_command:
        checks.append(partial(command_preflight.check_command, loaded, chosen, launcher))
    else:
        checks += [partial(data_preflight.check_inputs, loaded, runs), partial(_check_effects, loaded, runs)]
        checks.append(partial(weights_preflight.check_weights, loaded, runs))
    with ThreadPoolExecutor() as pool:  # most checks wait for a process
        asked = pool.submit(_check_slurm, loaded, chosen, launcher)
        found = list(chain.from_iterable(pool.map(lambda check: list(check()), checks)))
    try:
        found += asked.result()
    except RunError as error:  # Slurm did not answer; reported together with other findings
        if not found:
            raise
        found.append(str(error))
    if found:
        raise ConfigError(list(dict.fromkeys(found)))
    return [*([] if is_command else data_preflight.check_corpora(loaded, runs)), *_warn_of_unequal_tokens(runs)]


def _warn_of_unequal_tokens(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a warning if cells of the same size train on different numbers of tokens."""
    cells: dict[int, list[str]] = {}
    for name, run in first_of_cells([run for run in runs if run.size == runs[0].size]).items():
        if run.config.tokens:
            cells.setdefault(run.config.tokens, []).append(name)
    if len(cells) > 1:
        usual = max(cells, key=lambda tokens: len(cells[tokens]))
        rest = cells.pop(usual)
        named = [f"{list_names(names)}: {tokens:,}" for tokens, names in cells.items()]
        named.append(f"{'others' if len(rest) > 1 else rest[0]}: {usual:,}")
        yield (
            f"warning: cells train on unequal numbers of tokens ({'; '.join(named)}); the report compares them at a "
            "matched budget"
        )


def _check_exports(loaded: Loaded) -> Iterator[str]:
    """Yield the variables that jobs should get but this shell does not have."""
    for name in exported_env.unset(loaded.experiment.export):
        yield f"{loaded.at('export')}export: {name} is not set in this shell; set it, or take it out of the list"


def _warn_of_notify(loaded: Loaded) -> None:
    """Warn if the variable with the webhook's URL is not set; the study runs without it."""
    notify = loaded.experiment.notify
    if notify and exported_env.unset(notify.exports):
        where = loaded.at("notify", "webhook")
        complain(f"warning: {where}notify.webhook: {notify.variable} is not set in this shell; no message will be sent")


def _check_output(loaded: Loaded) -> Iterator[str]:
    """Yield why the study's folder cannot be created."""
    problem = ""
    try:
        parent = shared_fs.nearest_existing(loaded.experiment.folder)
        if not parent.is_dir():
            problem = f"{parent} is a file, not a folder"
        elif not os.access(parent, os.W_OK | os.X_OK):
            problem = f"{parent} is not writable"
    except OSError as error:
        problem = f"no access: {error.strerror}"
    if problem:
        yield f"{loaded.at('output')}output: {problem}; choose another `output:`"


def _check_space(loaded: Loaded, runs: Sequence[Run]) -> Iterator[str]:
    """Yield a problem if the checkpoints of all runs exceed the free space. Quotas cannot be seen."""
    folder = loaded.experiment.folder
    try:
        parent = shared_fs.nearest_existing(folder)
        free, there = shutil.disk_usage(parent).free, set(list_folder(folder))
    except OSError:  # reported by `_check_output`
        return
    configs = {cell: run.cell_config for cell, run in first_of_cells(runs).items()}
    kept = {cell: _bytes_kept(config) for cell, config in configs.items() if isinstance(config, RunConfig)}
    needed = sum(
        max(0, kept[run.cell] - (_bytes_there(folder / run.id) if run.id in there else 0))
        for run in runs
        if run.cell in kept
    )
    if needed > free:
        yield (
            f"output: checkpoints of {count(len(runs), 'run')} need about {_describe_bytes(needed)}, {parent} has "
            f"{_describe_bytes(free)} free; choose another `output:` or fewer runs"
        )


def _describe_bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _bytes_there(run_dir: Path) -> int:
    """Return the bytes of a stopped or failed run's checkpoints, which its next attempt replaces."""
    return sum(path.stat().st_size for path in run_dir.glob("*.pt"))


def _bytes_kept(config: RunConfig) -> int:
    """Return the bytes of a run's checkpoints and one being written (weights, two moments), model.pt and best.pt."""
    checkpoints = config.trainer.save_total_limit + 1 + (branch_step(config.trainer) is not None)
    copies = 3 * checkpoints + 1 + config.trainer.save_best
    return (count_parameters(without_custom_components(config.model)) or 0) * BYTES_PER_PARAMETER * copies


def _check_effects(loaded: Loaded, runs: Sequence[Run]) -> Iterator[str]:
    """Yield the cells that train exactly like the baseline.

    Where settings alone do not show the difference, a shrunken model of each is trained, in a process with torch.
    """
    first = first_of_cells([run for run in runs if run.size == runs[0].size])  # other sizes only differ in scale
    baseline = next((run for run in first.values() if not run.features), None)
    cells = [run for run in first.values() if run.features]
    if len(cells) > MOST_PROBED:
        cells = [run for run in cells if len(run.features) == 1][:MOST_PROBED]
    if baseline is None:
        return
    reference = require_trainer(baseline.config)
    cells = [run for run in cells if not differ_by_settings(require_trainer(run.config), reference)]
    if not cells:
        return
    configs = [run.config.as_tree() for run in (baseline, *cells)]
    try:
        same, *others = json.loads(run_module("ablatrix.trainer.effect_check", text=json.dumps(configs)))
    except RunError as error:
        yield f"the model cannot be built and trained: {error}"
        return
    for run, signature in zip(cells, others, strict=True):
        if signature == same:
            settings = ", ".join(f"{key}: {spell(value)}" for key, value in run.overrides.items())
            yield (
                f"{loaded.at('features', run.features[0])}cell {run.cell} has no effect: with {settings} the model, "
                "its first steps, the learning rates and the batches are the baseline's"
            )


def _check_slurm(loaded: Loaded, runs: Sequence[Run], launcher: str) -> list[str]:
    """Return why Slurm would refuse the jobs. Raises RunError if Slurm does not answer."""
    if launcher == "local":
        return []
    if not commands.available():
        return [f"launcher {launcher}: there is no sbatch on this machine; use --launcher local"]
    try:
        return list(slurm_preflight.check_jobs(loaded, runs, launcher))
    except commands.NoAnswerError as error:
        raise RunError(
            f"Slurm does not answer ({error}); run the command again later, or use --launcher local"
        ) from None
    except commands.ControllerError as error:
        return [f"{loaded.at('slurm')}slurm: {error}"]
