"""Earlier runs of a study: which forbid a submit, which stay beside it, and which its runs continue.

A run's folder is named by its settings. Other settings make another run; the finished one of the same cell and seed
stays as it is, and where it has only fewer steps its checkpoint is where the new one starts.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.status.run_state import RunState
from ablatrix.orchestrator.store import run_folder
from ablatrix.orchestrator.study.dotted import flatten
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.trainer.config import RunConfig, load, optimization, run_hash
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.data import fingerprints
from ablatrix.trainer.rundir import loss_digest, recorded_inputs, run_files
from ablatrix.trainer.rundir.errors import AblatrixError, UserError
from ablatrix.trainer.rundir.files import atomic_write, read_bytes
from ablatrix.trainer.rundir.run_files import best_is_valid_at

SHOWN = 4  # names in a message
NAME = re.compile(r"(.+)-[0-9a-f]{8}")  # <cell>-seed<seed>-<fingerprint>
COPIED = (run_files.LOSS, run_files.METRICS, run_files.SAMPLES)


class Inputs:
    """Fingerprints of the files that runs read, each file looked at once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], dict[str, str]] = {}

    def of(self, run: Run) -> dict[str, str]:
        """Return the fingerprints of a run's corpus and tokenizer; {} for a command, whose files are not known."""
        config = run.config
        if not isinstance(config, RunConfig):
            return {}
        key = (str(config.data.file_path), config.data.tokenizer, config.system.cache_dir)
        if key not in self._known:
            self._known[key] = fingerprints.of_inputs(config)
        return self._known[key]


def refuse_changed_inputs(runs: Iterable[Run], states: Iterable[RunState], again: Sequence[str]) -> None:
    """Raise UserError where a run of the study was trained, or waits to be, on another corpus or tokenizer.

    again: ids of runs whose results are put aside.
    """
    planned, inputs = {run.id: run for run in runs}, Inputs()
    affected: dict[str, list[str]] = {}
    for state in states:
        run = planned.get(state.run.id)
        if run is None or run.id in again or not (state.iter or state.active or state.state == "done"):
            continue
        changed = recorded_inputs.changed(_recorded(state.run.folder), inputs.of(run))
        if changed and isinstance(run.config, RunConfig):
            names = [f"{name} ({getattr(run.config.data, name.partition('.')[2])})" for name in changed]
            affected.setdefault(" and ".join(names), []).append(run.id)
    if affected:
        raise UserError("\n".join(_describe_changed(names, ids) for names, ids in affected.items()))


def _describe_changed(names: str, ids: Sequence[str]) -> str:
    rerun = " ".join(f"--rerun {run}" for run in ids) if len(ids) <= SHOWN else "--rerun all"
    return (
        f"{names}: the content has changed since {_count(ids)} of this study used it ({_list(ids)}), and results on "
        f"different data cannot be compared; put the old file back, give the study another `name:`, or train these "
        f"again with {rerun}"
    )


def _recorded(folder: Path) -> dict[str, Any]:
    """Return what a run's files say of the content of its corpus and tokenizer."""
    for name in (run_files.SUMMARY, run_files.PROVENANCE):
        record = run_files.read_json(folder / name) or {}
        if recorded_inputs.SETTINGS.keys() & record.keys():
            return record
    return {}


@dataclass(frozen=True)
class Earlier:
    """A finished run of the same cell and seed, with other settings; or one that another version has named."""

    folder: Path
    changes: dict[str, tuple[Any, Any]]  # dotted setting -> its value, the new run's value
    start: int | None  # the step of a checkpoint that the new run can start from
    best: bool = False  # whether best.pt is the new run's best so far, too
    finished: bool = True


def find(folder: Path, runs: Iterable[Run]) -> dict[str, Earlier]:
    """Return, for each run that has no result and no checkpoint of its own, the earlier run closest to it."""
    there: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            match = NAME.fullmatch(name)
            if match:
                there.setdefault(match[1], []).append(name)
    found = {}
    for run in runs:
        others = [name for name in there.get(run.id.rpartition("-")[0], ()) if name != run.id]
        started = (folder / run.id / run_files.SUMMARY).exists() or run_files.list_checkpoints(folder / run.id)
        if others and not started:
            candidates = [e for name in sorted(others) if (e := _compare(folder / name, run))]
            if candidates:
                found[run.id] = max(candidates, key=lambda e: (e.start or 0, -len(e.changes)))
    return found


def _compare(folder: Path, run: Run) -> Earlier | None:
    """Return what an earlier run's folder is to a new run; None where it cannot be read.

    Also for one that is not finished, but for its name is the same.
    """
    summary = run_folder.read_summary(folder)
    if summary is None:
        return _compare_unfinished(folder, run.config) if isinstance(run.config, RunConfig) else None
    if not isinstance(run.config, RunConfig):
        before = flatten(run_files.read_json(folder / run_files.CONFIG) or {})
        now = flatten(run.config.as_tree())
        keys = sorted(before.keys() | now.keys())
        return Earlier(folder, {k: (before.get(k), now.get(k)) for k in keys if before.get(k) != now.get(k)}, None)
    try:
        config = load(folder / run_files.CONFIG)
    except AblatrixError:
        return None
    start = None if loss_digest.find_change(folder, summary) else _start(folder, config, run.config)
    changes = run_hash.differences(config.identity(), run.config.identity())
    if loss_digest.is_of_older_version(summary) and "trainer.max_iters" in changes:
        start = None
    best = best_is_valid_at(summary, start or 0, run.config.trainer.eval_interval)
    return Earlier(folder, changes, start, best)


def _compare_unfinished(folder: Path, config: RunConfig) -> Earlier | None:
    try:
        there = load(folder / run_files.CONFIG)
    except AblatrixError:
        return None
    start = _start(folder, there, config) if there.fingerprint() == config.fingerprint() else None
    return Earlier(folder, {}, start, best=True, finished=False) if start else None


def _start(folder: Path, there: RunConfig, config: RunConfig) -> int | None:
    """Return the step of the newest checkpoint that serves a run with this configuration too."""
    steps = map(run_files.checkpoint_step, run_files.list_checkpoints(folder))
    fitting = (
        s for s in steps if s <= config.trainer.max_iters and there.identity_until(s) == config.identity_until(s)
    )
    return next(fitting, None)


def describe(runs: Iterable[Run], found: Mapping[str, Earlier]) -> list[str]:
    """Return a line for each change of settings: what changed, and which finished runs stay beside."""
    groups: dict[str, list[tuple[Run, Earlier]]] = {}
    for run in runs:
        earlier = found.get(run.id)
        if earlier:
            groups.setdefault(_describe_changes(earlier), []).append((run, earlier))
    lines = []
    for text, members in groups.items():
        names = [earlier.folder.name for _, earlier in members]
        noun = "finished run" if all(earlier.finished for _, earlier in members) else "earlier run"
        lines.append(f"{text}: {_count(names, noun)} {'stays' if len(names) == 1 else 'stay'} beside ({_list(names)})")
        starts = {earlier.start for _, earlier in members if earlier.start}
        if starts:
            lines[-1] += f"; the new ones go on from step {' or '.join(map(str, sorted(starts)))}"
        elif any(_only_longer(run, earlier) for run, earlier in members):
            lines[-1] += f"; {_explain_start(members)}"
    return lines


def _describe_changes(earlier: Earlier) -> str:
    told = [f"{key} is {_shown(now)}, was {_shown(before)}" for key, (before, now) in earlier.changes.items()]
    if not told:
        return "this version of Ablatrix names these runs differently, their settings are the same"
    return ", ".join(told[:SHOWN]) + (f" and {len(told) - SHOWN} more settings" if len(told) > SHOWN else "")


def _shown(value: Any) -> str:
    return "not set" if value is None else spell(value)


def _only_longer(run: Run, earlier: Earlier) -> bool:
    return "trainer.max_iters" in earlier.changes and isinstance(run.config, RunConfig)


def _explain_start(members: Sequence[tuple[Run, Earlier]]) -> str:
    """Return why longer runs begin from step 0."""
    run, earlier = next(pair for pair in members if _only_longer(*pair))
    assert isinstance(run.config, RunConfig)
    name = optimization.schedule_name(run.config.trainer)
    before, now = earlier.changes["trainer.max_iters"]
    if now < before or set(earlier.changes) - {"trainer.max_iters", *(f"trainer.{k}" for k in optimization.PHASES)}:
        return "the new ones begin from step 0"
    if name in ("constant", "inverse_sqrt") or not run_files.list_checkpoints(earlier.folder):
        return "the new ones begin from step 0: no checkpoint of them is left that fits"
    return f"the new ones begin from step 0: the learning rates of schedule {name} depend on trainer.max_iters"


def copy_start(earlier: Earlier, target: Path) -> None:
    """Give a new run the checkpoint, the rows and the samples that an earlier run has up to `start`. Raises OSError."""
    assert earlier.start is not None
    if run_files.list_checkpoints(target):  # another submit was faster
        return
    for name in COPIED:
        with contextlib.suppress(FileNotFoundError):
            atomic_write(target / name, read_bytes(earlier.folder / name), durable=False)
    with contextlib.suppress(FileNotFoundError):
        if earlier.best:
            _link(earlier.folder / run_files.BEST, target / run_files.BEST)
    name = f"checkpoint-{earlier.start:08d}.pt"  # last: without rows a checkpoint is not used
    _link(earlier.folder / name, target / name)


def _link(source: Path, target: Path) -> None:
    """One more name for a file that is only ever replaced whole; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)


def _count(names: Sequence[str], noun: str = "run") -> str:
    return f"{len(names)} {noun}{'s' * (len(names) != 1)}"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
