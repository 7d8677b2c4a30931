"""The verb `clean`: what of a study takes room and is needed by nothing, and its removal."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.store import code_snapshot, run_folder, shared_fs, study_dir
from ablatrix.orchestrator.store.study_dir import LOGS, Study, StudyRun
from ablatrix.trainer.config import TrainerConfig
from ablatrix.trainer.config.optimization import branch_step
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import append_event
from ablatrix.trainer.rundir.files import is_own, read_bytes, remove

_CHECKPOINT = re.compile(r"checkpoint-([0-9]{1,15})\.pt")
_SET_ASIDE = re.compile(r"\.old-[0-9]+$")
_CODE = re.compile(r"\b[0-9a-f]{16}\b")
UNUSED_SECONDS = 3600.0  # a submit uses its snapshot within seconds of taking it
SCRIPTS_KEPT = 30 * 86400.0  # a job script that is older has run, or been cancelled
MOST_SNAPSHOTS = 10  # beyond which `submit` removes those that nothing names


@dataclass(frozen=True)
class Item:
    """Something that may go. run: the finished run to which it belongs."""

    path: Path
    why: str
    bytes: int
    inodes: int
    run: StudyRun | None = None


def find(study: Study) -> list[Item]:
    """Return what may be removed without loss to any run, report or resume. Raises UserError for another's study."""
    study_dir.require_own(study.folder)
    store = study_dir.snapshot_store(study.folder)
    return [*_run_items(study), *_set_aside(study), *(_item(p, "code that no run names") for p in unused_code(store))]


def carry_out(study: Study, items: Sequence[Item]) -> list[Item]:
    """Remove those of the items that may still go, and return them. Runs note what was taken from them."""
    removed = []
    still = {item.path for item in find(study)}
    for item in items:
        if item.path not in still:
            continue
        if item.run:  # first, or status would miss the file
            append_event(item.run.folder, "cleaned", files=[item.path.name])
        if item.path.parent == study_dir.snapshot_store(study.folder):
            remove_code(item.path)
        else:
            remove(item.path)
        removed.append(item)
    return removed


def _run_items(study: Study) -> Iterator[Item]:
    for state in study_state.collect(study):
        folder = state.run.folder
        if state.active:
            continue
        for path in sorted(folder.glob("*.bad*")):
            yield _item(path, "damaged checkpoint, set aside", state.run)
        if state.state == "done":
            for path in _older_checkpoints(folder):
                yield _item(path, "older checkpoint of a finished run", state.run)


def _older_checkpoints(folder: Path) -> list[Path]:
    """All but the last one and the one where a longer run would branch off; none where the last is not the end's."""
    steps = {
        int(match[1]): path for path in folder.glob("checkpoint-*.pt") if (match := _CHECKPOINT.fullmatch(path.name))
    }
    summary = run_folder.read_summary(folder) or {}
    last = max(steps, default=0)
    try:
        settings = TrainerConfig.model_validate((run_files.read_json(folder / run_files.CONFIG) or {}).get("trainer"))
    except ValidationError:
        return []
    if last != summary.get("iters"):
        return []
    return [path for step, path in sorted(steps.items()) if step not in (last, branch_step(settings))]


def _set_aside(study: Study) -> Iterator[Item]:
    known = {run.id for run in study.runs}
    for path in sorted(study.folder.glob("*.old-*")):
        if _SET_ASIDE.search(path.name) and _SET_ASIDE.sub("", path.name) in known and not path.is_symlink():
            yield _item(path, "result that --rerun put aside")


def unused_code(store: Path) -> list[Path]:
    """Return the snapshots that no run, job script or waiting wave beside the store names, and nobody took lately.

    None of them where a study cannot be read: it might name one.
    """
    if not store.is_dir() or not is_own(store):
        return []
    codes = [path for path in store.iterdir() if code_snapshot.NAME.fullmatch(path.name) and path.is_dir()]
    try:
        named = _named_code(store.parent)
        return sorted(p for p in codes if p.name not in named and shared_fs.age(p, store) > UNUSED_SECONDS)
    except OSError:
        return []


def _named_code(folder: Path) -> set[str]:
    """Words that may be snapshots' names in all that the studies in a folder say of code. Raises OSError."""
    named: set[str] = set()
    for study in folder.iterdir():
        if study.name.startswith(".") or not study.is_dir():
            continue
        texts = [*study.glob(f"*/{run_files.PROVENANCE}"), *study.glob("*.json")]
        scripts = [*study.glob(f"{LOGS}/*.sbatch"), *study.glob(f"{LOGS}/submitit/**/*.sh")]
        texts += [path for path in scripts if time.time() - path.stat().st_mtime < SCRIPTS_KEPT]
        for path in texts:
            if path.name != study_dir.STUDY:
                named.update(_CODE.findall(read_bytes(path).decode("utf-8", "replace")))
    return named


def prune_code(store: Path) -> None:
    """Remove what nothing names, where many snapshots have gathered."""
    with contextlib.suppress(OSError):
        if sum(1 for path in store.iterdir() if code_snapshot.NAME.fullmatch(path.name)) > MOST_SNAPSHOTS:
            for path in unused_code(store):
                remove_code(path)


def remove_code(path: Path) -> None:
    """Remove a snapshot and its patch, unless a submit has taken it meanwhile."""
    taken = path.stat().st_mtime
    half = path.with_name(f".{path.name}.{os.getpid()}.gone.tmp")
    path.rename(half)  # from here on a submit writes it again
    if half.stat().st_mtime != taken:
        with contextlib.suppress(OSError):
            half.rename(path)
            return
    shutil.rmtree(half, ignore_errors=True)
    path.with_name(f"{path.name}.patch").unlink(missing_ok=True)


def _item(path: Path, why: str, run: StudyRun | None = None) -> Item:
    inside = [path, *path.rglob("*")] if path.is_dir() else [path]
    return Item(path, why, sum(p.lstat().st_size for p in inside if not p.is_dir()), len(inside), run)


def describe(items: Sequence[Item]) -> list[str]:
    """Return a line per kind of thing, and one per item of it: bytes, inodes, path."""
    lines = []
    for why in dict.fromkeys(item.why for item in items):
        kind = [item for item in items if item.why == why]
        lines.append(f"{why}: {total(kind)}")
        lines += [f"  {item.path}" for item in kind]
    return lines


def total(items: Sequence[Item]) -> str:
    """Return the room that they take: `12.3 MB in 45 files and folders`."""
    size, inodes = sum(item.bytes for item in items), sum(item.inodes for item in items)
    return f"{size / 1e6:,.1f} MB in {inodes:,} files and folders"
