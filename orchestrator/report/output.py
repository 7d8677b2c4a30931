"""The files of a report on disk: written whole, left alone where nothing changed, cleared of what is no longer made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.files import atomic_write, make_folder, read_bytes

MANIFEST = ".made.json"
FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # as reports are made of; the manifest is read back from the folder
DRAWN_BY = ("matplotlib", "numpy", "scipy", "jinja2")


def refresh(folder: Path, inputs: str, make: Callable[[], Mapping[str, bytes | str]]) -> tuple[Path, ...]:
    """Write what `make` gives into `folder`, unless the files there were made from the same `inputs` and are untouched.

    inputs: digest of all that the content depends on; the report's own code is added here. Files of an earlier report
    that are not made any more are removed. Raises RunError where the folder cannot be written.
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
        raise RunError(f"{where}: the report cannot be written: {error.strerror}") from None
    return tuple(folder / name for name in files)


def _manifest(folder: Path) -> dict:
    """The manifest of the last report; an empty one where there is none that makes sense."""
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
    """Digest of everything that makes a report out of its inputs."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.read_bytes())
    digest.update(" ".join(f"{name} {version(name)}" for name in DRAWN_BY).encode())
    return digest.hexdigest()
