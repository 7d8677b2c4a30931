"""Write the files of a report: atomically, only if something changed; outdated files are removed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.status.removed_files import MANIFEST
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.files import atomic_write, make_folder, read_bytes

FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # allowed names; the manifest is read back from the folder
DRAWN_BY = ("matplotlib", "numpy", "scipy", "jinja2")


def refresh(folder: Path, inputs: str, make: Callable[[], Mapping[str, bytes | str]]) -> tuple[Path, ...]:
    """Write the files that `make` returns into `folder`, unless it has unmodified files made from the same `inputs`.

    inputs: digest of everything that the content depends on, except the report's own code, which is added here. Files
    of an earlier report that are no longer part of it are removed. Raises RunError if the folder cannot be written.
    """
    key = hashlib.sha256(f"{inputs} {_code()}".encode()).hexdigest()
    old = _manifest(folder)
    if old.get("key") == key and old["files"] and all(_digest(folder / n) == d for n, d in old["files"].items()):
        return tuple(folder / name for name in old["files"])
    files = make()
    try:
        make_folder(folder, parents=True)
        for name, content in files.items():
            atomic_write(folder / name, content, durable=False)
        for name in old["files"].keys() - files.keys():
            if (folder / name).is_file():
                (folder / name).unlink(missing_ok=True)
        record = {"key": key, "files": {name: _digest(folder / name) for name in files}}
        atomic_write(folder / MANIFEST, json.dumps(record, indent=1) + "\n", durable=False)
    except OSError as error:
        where = error.filename or folder
        raise RunError(f"cannot write the report to {where}: {error.strerror}") from None
    return tuple(folder / name for name in files)


def _manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of the last report, {} if it is missing or corrupt."""
    found = run_files.read_json(folder / MANIFEST) or {}
    files = found.get("files")
    plain = isinstance(files, dict) and all(FILE.fullmatch(name) for name in files)
    return {"key": found.get("key"), "files": files if plain else {}}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except OSError:
        return ""


@cache
def _code() -> str:
    """Return a digest of the code and library versions that a report is made with."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.read_bytes())
    digest.update(" ".join(f"{name} {version(name)}" for name in DRAWN_BY).encode())
    return digest.hexdigest()
