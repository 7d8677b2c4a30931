"""Code snapshots that are no longer used, and their removal."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path

from ablatrix.orchestrator.store import code_snapshot, shared_fs
from ablatrix.orchestrator.store.study_dir import LOGS, STUDY
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.files import read_bytes
from ablatrix.trainer.rundir.owners import is_own

_CODE = re.compile(r"\b[0-9a-f]{16}\b")
UNUSED_SECONDS = 3600.0  # a submit uses its snapshot within seconds of taking it
SCRIPTS_KEPT = 30 * 86400.0  # the job of an older job script has run or been cancelled
MOST_SNAPSHOTS = 10  # beyond which `submit` removes unused ones


def find_unused(store: Path) -> list[Path]:
    """Return the snapshots that no run, job script or waiting wave names, unless they were taken just now.

    Return [] if a study cannot be read, as it might name any of them.
    """
    if not store.is_dir() or not is_own(store):
        return []
    try:
        named = _find_named(store.parent)
        codes = _snapshots(store)
        return sorted(p for p in codes if p.name not in named and shared_fs.age(p, store) > UNUSED_SECONDS)
    except OSError:
        return []


def prune(store: Path) -> None:
    """Remove unused snapshots if there are more than MOST_SNAPSHOTS."""
    with contextlib.suppress(OSError):
        if len(_snapshots(store)) > MOST_SNAPSHOTS:
            for path in find_unused(store):
                remove(path)


def remove(path: Path) -> None:
    """Remove a snapshot and its patch, unless a submit has used it in the meantime."""
    taken = path.stat().st_mtime
    half = path.with_name(f".{path.name}.{os.getpid()}.gone.tmp")
    path.rename(half)  # from now on, a submit writes a new snapshot
    if half.stat().st_mtime != taken:
        with contextlib.suppress(OSError):
            half.rename(path)
            return
    shutil.rmtree(half, ignore_errors=True)
    path.with_name(f"{path.name}.patch").unlink(missing_ok=True)


def _snapshots(store: Path) -> list[Path]:
    return [path for path in store.iterdir() if code_snapshot.NAME.fullmatch(path.name) and path.is_dir()]


def _find_named(folder: Path) -> set[str]:
    """Return words in the records and job scripts of a folder's studies that may name a snapshot. Raises OSError."""
    named: set[str] = set()
    for study in folder.iterdir():
        if study.name.startswith(".") or not study.is_dir():
            continue
        records = [*study.glob(f"*/{run_files.PROVENANCE}"), *study.glob("*.json")]
        scripts = [*study.glob(f"{LOGS}/*.sbatch"), *study.glob(f"{LOGS}/submitit/**/*.sh")]
        recent = [path for path in scripts if time.time() - path.stat().st_mtime < SCRIPTS_KEPT]
        for path in (*records, *recent):
            if path.name != STUDY:
                text = read_bytes(path).decode("utf-8", "replace")
                named.update(_CODE.findall(text))
    return named
