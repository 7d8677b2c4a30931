"""Earlier runs of a study with different settings, which are kept and may be continued by new runs.

A run's folder is named after its settings, so changed settings make a new run. The finished run of the same cell and
seed stays as it is; if it differs only in having fewer steps, the new run starts from its checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.store import run_facts
from ablatrix.orchestrator.study.dotted import flatten
from ablatrix.orchestrator.submit import changed_inputs
from ablatrix.orchestrator.terminal.printing import MOST_NAMES, list_names
from ablatrix.trainer.config import RunConfig, load, optimization, run_hash
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.rundir import loss_digest, recorded_inputs, run_files
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.errors import AblatrixError
from ablatrix.trainer.rundir.files import atomic_write, read_bytes

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.matrix import Run

NAME = re.compile(r"(.+)-[0-9a-f]{8}")  # <cell>-seed<seed>-<fingerprint>
COPIED = (run_files.LOSS, run_files.METRICS, run_files.SAMPLES)


@dataclass(frozen=True)
class EarlierRun:
    """A finished run of the same cell and seed."""

    folder: Path
    changes: dict[str, tuple[Any, Any]]  # dotted setting -> (its value, the new run's value)
    start: int | None  # step of the checkpoint that the new run can start from
    best: bool = False  # True if its best.pt is also the new run's best so far
    other_inputs: tuple[str, ...] = ()  # settings whose files have changed since, so the run cannot be continued


def find(folder: Path, runs: Iterable[Run]) -> dict[str, EarlierRun]:
    """Return run id -> closest earlier run, for runs without a result or checkpoint of their own."""
    names: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):
            match = NAME.fullmatch(name)
            if match:
                names.setdefault(match[1], []).append(name)
    found, inputs = {}, changed_inputs.Inputs()
    for run in runs:
        others = [name for name in names.get(run.id.rpartition("-")[0], ()) if name != run.id]
        if others and not _has_started(folder / run.id):
            candidates = [earlier for name in others if (earlier := _compare(folder / name, run, inputs))]
            if candidates:
                found[run.id] = max(candidates, key=lambda earlier: (earlier.start or 0, -len(earlier.changes)))
    return found


def _has_started(folder: Path) -> bool:
    """True if a run has a result or a checkpoint."""
    return (folder / run_files.SUMMARY).exists() or bool(run_files.list_checkpoints(folder))


def _compare(folder: Path, run: Run, inputs: changed_inputs.Inputs) -> EarlierRun | None:
    """Return how an earlier run relates to a new one; None if it cannot be read or has not finished."""
    summary = run_facts.read_summary(folder)
    if summary is None:
        return None
    if isinstance(run.config, RunConfig):
        return _compare_ours(folder, summary, run.config, inputs)
    before = run_facts.read_settings(folder)
    now = flatten(run.config.as_tree())
    keys = sorted(before.keys() | now.keys())
    return EarlierRun(folder, {k: (before.get(k), now.get(k)) for k in keys if before.get(k) != now.get(k)}, None)


def _compare_ours(
    folder: Path, summary: dict[str, Any], config: RunConfig, inputs: changed_inputs.Inputs
) -> EarlierRun | None:
    try:
        before = load(folder / run_files.CONFIG)
    except AblatrixError:
        return None
    start = _find_start(folder, before, config)
    changes = run_hash.differences(before.identity(), config.identity())
    if loss_digest.find_change(folder, summary):
        start = None
    other_inputs = tuple(recorded_inputs.changed(summary, inputs.of(config))) if start else ()
    if other_inputs:
        start = None
    best = run_files.best_is_valid_at(summary, start or 0, config.trainer.eval_interval)
    return EarlierRun(folder, changes, start, best, other_inputs)


def _find_start(folder: Path, before: RunConfig, config: RunConfig) -> int | None:
    """Return the step of the newest checkpoint of `before` that `config` would also have reached."""
    for step in map(run_files.checkpoint_step, run_files.list_checkpoints(folder)):
        if step <= config.trainer.max_iters and before.identity_until(step) == config.identity_until(step):
            return step
    return None


def describe(runs: Iterable[Run], found: Mapping[str, EarlierRun]) -> list[str]:
    """Return a line for each change of settings: the cells, what changed, and which earlier runs are replaced."""
    groups: dict[str, list[tuple[Run, EarlierRun]]] = {}
    for run in runs:
        earlier = found.get(run.id)
        if earlier:
            groups.setdefault(_describe_changes(earlier), []).append((run, earlier))
    return [
        f"{list_names(list(dict.fromkeys(run.cell for run, _ in members)))}: {changes}: {_describe_group(members)}"
        for changes, members in groups.items()
    ]


def _describe_changes(earlier: EarlierRun) -> str:
    if not earlier.changes:
        return "this version of Ablatrix names these runs differently, their settings are the same"
    words = [f"{key} is {_spell(now)}, was {_spell(before)}" for key, (before, now) in earlier.changes.items()]
    more = len(words) - MOST_NAMES
    return ", ".join(words[:MOST_NAMES]) + (f" and {more} more settings" if more > 0 else "")


def _spell(value: Any) -> str:
    return "not set" if value is None else spell(value)


def _describe_group(members: Sequence[tuple[Run, EarlierRun]]) -> str:
    names = [earlier.folder.name for _, earlier in members]
    takes, are, them = ("takes", "is", "it") if len(names) == 1 else ("take", "are", "them")
    text = (
        f"{count(len(names), 'new run')} {takes} the place of {count(len(names), 'finished run')}, which {are} kept "
        f"beside {them} ({list_names(names)})"
    )
    starts = sorted({earlier.start for _, earlier in members if earlier.start})
    if starts:
        return f"{text}; the new runs continue from step {' or '.join(map(str, starts))}"
    for run, earlier in members:
        if "trainer.max_iters" in earlier.changes and isinstance(run.config, RunConfig):
            return f"{text}; the new runs start from step 0{_explain_fresh_start(run.config, earlier)}"
    return text


def _explain_fresh_start(config: RunConfig, earlier: EarlierRun) -> str:
    """Return why a run with a different number of steps starts afresh; '' if other settings changed too."""
    if earlier.other_inputs:
        return f": the content of {list_names(earlier.other_inputs)} has changed"
    name = optimization.schedule_name(config.trainer)
    before, now = earlier.changes["trainer.max_iters"]
    phases = {"trainer.max_iters", *(f"trainer.{key}" for key in optimization.PHASES)}
    if now < before or earlier.changes.keys() - phases:
        return ""
    if name in ("constant", "inverse_sqrt") or not run_files.list_checkpoints(earlier.folder):
        return ": none of their checkpoints fits"
    return f": the learning rates of schedule {name} depend on trainer.max_iters"


def copy_start(earlier: EarlierRun, target: Path) -> None:
    """Copy an earlier run's checkpoint, rows and samples up to `start` into a new run's folder. Raises OSError."""
    assert earlier.start is not None
    if run_files.list_checkpoints(target):  # a concurrent submit was faster
        return
    for name in COPIED:
        with contextlib.suppress(FileNotFoundError):
            atomic_write(target / name, read_bytes(earlier.folder / name), durable=False)
    with contextlib.suppress(FileNotFoundError):
        if earlier.best:
            _link(earlier.folder / run_files.BEST, target / run_files.BEST)
    name = f"checkpoint-{earlier.start:08d}.pt"  # last, as a checkpoint without rows is not used
    _link(earlier.folder / name, target / name)


def _link(source: Path, target: Path) -> None:
    """Hard-link a file that is only ever replaced as a whole; copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.copyfile(source, temporary)
        temporary.replace(target)
