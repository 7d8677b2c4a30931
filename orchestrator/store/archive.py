"""An archive of files with a manifest of their SHA-256: reproducible byte for byte, verified when unpacked."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.files import open_for_reading, replace

MANIFEST = "manifest.json"
SCHEMA = 1
EPOCH = (1980, 1, 1, 0, 0, 0)  # time of every member, so that the same content gives the same bytes
PIECE = 1 << 20  # bytes copied at a time
READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


def write(path: Path, files: Mapping[str, Path | bytes], facts: Mapping[str, Any]) -> str:
    """Write a zip archive and return the SHA-256 of its manifest, which identifies the content of every file.

    files: name in the archive -> file or content; facts: further fields of the manifest. Raises OSError.
    """
    manifest = b""

    def fill(file: IO[bytes]) -> None:
        nonlocal manifest
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
            listed = {name: _add(made, name, files[name]) for name in sorted(files)}
            manifest = (json.dumps({"schema": SCHEMA, **facts, "files": listed}, indent=1) + "\n").encode()
            _add(made, MANIFEST, manifest)

    replace(path, fill)
    return hashlib.sha256(manifest).hexdigest()


def _add(made: zipfile.ZipFile, name: str, content: Path | bytes) -> dict[str, Any]:
    """Add a member and return its size and SHA-256."""
    info = zipfile.ZipInfo(name, EPOCH)
    info.external_attr, info.compress_type, info.create_system = 0o644 << 16, zipfile.ZIP_DEFLATED, 3
    with made.open(info, "w", force_zip64=True) as member:
        if isinstance(content, bytes):
            size, sha256 = _copy(io.BytesIO(content), member)
        else:
            with open_for_reading(content) as file:
                size, sha256 = _copy(file, member)
    return {"bytes": size, "sha256": sha256}


def _copy(source: IO[bytes], target: IO[bytes] | None = None, limit: float = math.inf) -> tuple[int, str]:
    """Copy a file in pieces, as weights may be larger than memory, and return its size and SHA-256.

    target: None to write nothing; limit: bytes after which reading stops.
    """
    digest, size = hashlib.sha256(), 0
    while size <= limit and (piece := source.read(PIECE)):
        if target:
            target.write(piece)
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def unpack(path: Path, folder: Path) -> dict[str, Any]:
    """Unpack an archive into a new folder, and return its manifest.

    Leaves nothing behind unless every file matches the manifest. Raises UserError with everything that is wrong.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(path) as packed:
            manifest = _read_manifest(path, packed)
            problems = _wrong_names(packed, manifest["files"])
            if not problems:
                temporary.mkdir(parents=True)
                found = (_unpack(packed, name, temporary, wanted) for name, wanted in manifest["files"].items())
                problems = [problem for problem in found if problem]
        if problems:
            raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        temporary.rename(folder)
    except READ_ERRORS as error:
        raise UserError(f"{path}: incomplete or corrupt: {error}; copy it again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def find_changes(folder: Path) -> list[str]:
    """Return what differs between an unpacked archive and its manifest. Raises UserError if there is no manifest."""
    manifest = run_files.read_json(folder / MANIFEST)
    if manifest is None or not _is_manifest(manifest):
        raise UserError(f"{folder} exists but is not an unpacked archive; choose another folder with --to")
    found = []
    for name, wanted in manifest["files"].items():
        try:
            with open_for_reading(folder / name) as file:
                _, sha256 = _copy(file)
        except OSError:
            found.append(f"{name} is missing")
            continue
        if sha256 != wanted["sha256"]:
            found.append(f"{name} was changed")
    return found


def _read_manifest(path: Path, packed: zipfile.ZipFile) -> dict[str, Any]:
    text = packed.read(MANIFEST).decode("utf-8", "replace") if MANIFEST in packed.namelist() else ""
    content: Any = run_files.parse_json(text)
    if not _is_manifest(content):
        raise UserError(f"{path}: {MANIFEST} is missing or corrupt; this is not an archive made by `pack`")
    if content["schema"] != SCHEMA:
        raise UserError(f"{path}: made by a newer version of Ablatrix (schema {content['schema']}); install that one")
    return dict(content)


def _is_manifest(content: Any) -> bool:
    """True for an object whose `files` each have a size and a hash."""
    files = content.get("files") if isinstance(content, dict) and "schema" in content else None
    return isinstance(files, dict) and all(
        isinstance(wanted, dict) and isinstance(wanted.get("bytes"), int) and isinstance(wanted.get("sha256"), str)
        for wanted in files.values()
    )


def _wrong_names(packed: zipfile.ZipFile, wanted: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the member names; called before anything is written."""
    names = packed.namelist()
    found = [f"{name} is listed in {MANIFEST} but missing" for name in wanted if name not in names]
    found += [f"{name} is not listed in {MANIFEST}" for name in names if name not in wanted and name != MANIFEST]
    found += [f"{name} appears twice" for name in sorted({name for name in names if names.count(name) > 1})]
    return found + [f"{name!r} leads out of the folder" for name in wanted if not _is_safe(name)]


def _is_safe(name: str) -> bool:
    """True for a plain relative path."""
    return name.isprintable() and "\\" not in name and not set(name.split("/")) & {"", ".", ".."}


def _unpack(packed: zipfile.ZipFile, name: str, folder: Path, wanted: Mapping[str, Any]) -> str:
    """Write a member and return how it differs from the manifest, '' if it matches."""
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with packed.open(name) as member, target.open("xb") as file:
            _, sha256 = _copy(member, file, wanted["bytes"])
    except READ_ERRORS as error:
        return f"cannot read {name}: {error}"
    return "" if sha256 == wanted["sha256"] else f"{name} is not the file that was packed"
