"""provenance.json of a run: the code, the environment and the command that it was submitted with."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.store import code_snapshot, job_command
from ablatrix.orchestrator.study import secrets
from ablatrix.trainer.rundir import recorded_inputs, run_files
from ablatrix.trainer.rundir.files import atomic_write

VERSIONS = ("ablatrix", "torch", "numpy", "transformers", "tokenizers", "submitit")
_SNAPSHOT = re.compile(rf'"code_snapshot": "({code_snapshot.NAME.pattern})"')
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


def write(folders: Iterable[Path], shared: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]]) -> None:
    """Write provenance.json of runs: their commands, `shared`, and facts about each. Raises OSError.

    facts: run id -> facts that are added to those in the folder.
    """
    text, own = _entries(shared), ""
    last: dict[str, Any] = {}
    for folder in folders:
        before = _read(folder)
        found = {**{name: before[name] for name in FACTS if name in before}, **facts.get(folder.name, {})}
        if found != last:  # most runs have the facts of the one before
            last, own = found, _entries(found)
        command = f' "command": [\n  {_words(job_command.trainer_command(folder))[1:-1]}\n ]'
        _replace(folder, ",\n".join(filter(None, (command, text, own))))


def add_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Record facts about one run, such as its corpus fingerprint, for the process that queues it. Raises OSError."""
    before = _read(folder)
    if {**before, **facts} != before:
        _replace(folder, _entries({**before, **facts}))


def _read(folder: Path) -> dict[str, Any]:
    return run_files.read_json(f"{folder}/{run_files.PROVENANCE}") or {}


# Indented as by json.dumps, which is slow with `indent`
_words = json.JSONEncoder(separators=(",\n  ", ": ")).encode


def _entries(record: Mapping[str, Any]) -> str:
    """Return the lines between the braces of a JSON object."""
    return json.dumps(record, indent=1)[2:-2]


def _replace(folder: Path, entries: str) -> None:
    atomic_write(f"{folder}/{run_files.PROVENANCE}", f"{{\n{entries}\n}}\n", durable=False)


def snapshots_of(runs: Iterable[Path]) -> dict[str, bool]:
    """Return the code snapshots of these runs: name -> True if there is a patch of uncommitted changes."""
    found: dict[str, bool] = {}
    for folder in runs:  # thousands are searched faster than they are parsed
        text = run_files.read_text(f"{folder}/{run_files.PROVENANCE}")
        if name := _SNAPSHOT.search(text):
            found[name[1]] = found.get(name[1], False) or '"git_patch_sha256": "' in text
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
