"""provenance.json of a run: the code, the environment and the command that it was submitted with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.store import code_snapshot
from ablatrix.orchestrator.study import secrets
from ablatrix.trainer.rundir import recorded_inputs, run_files
from ablatrix.trainer.rundir.files import atomic_write

VERSIONS = ("ablatrix", "torch", "numpy", "transformers", "tokenizers", "submitit")
FACTS = (*recorded_inputs.SETTINGS, "continued_from")  # facts about one run, which `write` keeps
# Environment variables that are recorded; none could contain a secret
RECORDED_ENVIRONMENT = ("HF_HOME", "ABLATRIX_CACHE", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "CONDA_DEFAULT_ENV")
# Options that make the patch independent of the user's git configuration, in the form that `secrets.mask_patch` parses
PATCH = (
    *("-c", "core.quotePath=true", "diff", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--submodule=short", "--unified=3", "--inter-hunk-context=0"),
    "--diff-algorithm=myers",
)


def collect(code: Path) -> dict[str, Any]:
    """Return the part of provenance.json that all runs of a submission share; it never contains secret values."""
    dirty = code_snapshot.git("status", "--porcelain").strip()
    return {
        "code_snapshot": code.name,
        "git_commit": code_snapshot.git("rev-parse", "HEAD").strip() or None,
        "git_dirty": bool(dirty),
        "git_patch_sha256": save_patch(code) if dirty else None,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "versions": _package_versions(),
        "environment": {name: os.environ[name] for name in RECORDED_ENVIRONMENT if name in os.environ},
        "submitted": round(time.time(), 3),
        "working_folder": str(Path.cwd()),
    }


def write(
    folder: Path, shared: Mapping[str, Any], command: Sequence[str], facts: Mapping[str, Any] | None = None
) -> None:
    """Write a run's provenance.json with these facts and those that were added before. Raises OSError."""
    before = _read(folder)
    kept = {name: before[name] for name in FACTS if name in before}
    _replace(folder, {"command": list(command), **shared, **kept, **(facts or {})})


def add_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Record facts about one run, such as its corpus fingerprint, for the process that queues it. Raises OSError."""
    before = _read(folder)
    if {**before, **facts} != before:
        _replace(folder, {**before, **facts})


def _read(folder: Path) -> dict[str, Any]:
    return run_files.read_json(folder / run_files.PROVENANCE) or {}


def _replace(folder: Path, record: Mapping[str, Any]) -> None:
    atomic_write(folder / run_files.PROVENANCE, json.dumps(record, indent=1) + "\n", durable=False)


def snapshots_of(runs: Iterable[Path]) -> dict[str, bool]:
    """Return the code snapshots of these runs: name -> True if there is a patch of uncommitted changes."""
    found: dict[str, bool] = {}
    for record in map(_read, runs):
        name = record.get("code_snapshot")
        if isinstance(name, str) and code_snapshot.NAME.fullmatch(name):
            found[name] = found.get(name, False) or isinstance(record.get("git_patch_sha256"), str)
    return found


def save_patch(code: Path) -> str | None:
    """Write uncommitted changes, secrets masked, to <snapshot>.patch and return its SHA-256; None if there are none."""
    patch = secrets.mask_patch(code_snapshot.git(*PATCH, "HEAD"))
    if not patch:
        return None
    path = code.with_name(f"{code.name}.patch")
    if not path.exists():
        atomic_write(path, patch)
    return hashlib.sha256(patch.encode()).hexdigest()


def _package_versions() -> dict[str, str]:
    """Return the installed versions of the packages that a result depends on."""
    found = {}
    for name in VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
