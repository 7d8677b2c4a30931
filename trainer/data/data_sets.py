"""Download data sets from the hub (a file, or the files of a pattern or folder) and add them to the manifest."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from ablatrix.trainer.data import hub
from ablatrix.trainer.data.corpus_files import KINDS, METADATA, plain_suffix
from ablatrix.trainer.data.manifest import DataEntry, add_entry, read_manifest
from ablatrix.trainer.rundir.console import count, say
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.files import remove
from ablatrix.trainer.rundir.owners import personal


def warm_data_set(repo: str, pattern: str, data_dir: Path, cache_dir: Path, *, force: bool = False) -> Path:
    """Download the data set's files that match a pattern or folder, at one commit, to a folder named like the data set.

    Raises UserError if there are none, or if two have the same name; also raises like `hub.fetch`.
    """
    files, commit = hub.list_files(repo)
    chosen = choose_files(files, pattern)
    if not chosen:
        there = ", ".join(files[:5]) or "nothing"
        raise UserError(f"--data {repo}:{pattern}: the data set has no such data file; it has {there}")
    twice = [name for name, count in Counter(Path(file).name for file in chosen).items() if count > 1]
    if twice:
        raise UserError(f"--data {repo}:{pattern}: several files are called {twice[0]}; choose one of their folders")
    folder = data_dir / repo.rpartition("/")[2]
    for file in chosen:
        warm_data(repo, file, folder, cache_dir, force=force, revision=commit)
    say(f"data {repo}: {count(len(chosen), 'file')} in {folder}; set data.file_path to this folder")
    return folder


def choose_files(files: Sequence[str], pattern: str) -> list[str]:
    """Return the data files that match a pattern or folder ('' matches all); of several formats, only the first."""
    matched = [file for file in files if not pattern or fnmatch(file, pattern) or Path(pattern) in Path(file).parents]
    data = [file for file in matched if Path(file).name not in METADATA]
    groups = ([file for file in data if plain_suffix(Path(file)) in kind] for kind in KINDS)
    return next((group for group in groups if group), [])


def warm_data(
    repo: str, file: str, data_dir: Path, cache_dir: Path, *, force: bool = False, revision: str = "main"
) -> Path:
    """Download one file of a data set to `data_dir` unless it is there and complete. Raises like `hub.fetch`."""
    if not all(part.isprintable() and part not in ("", ".", "..") for part in file.split("/")):
        raise UserError(f"--data {repo}:{file!r}: not the path of a file in a repository")
    target, key = data_dir / Path(file).name, f"{repo}:{file}"
    known = read_manifest(cache_dir).data.get(key)
    if not force and known and known.path == os.path.abspath(target) and target.exists():
        say(f"data {key}: verifying {target}")
        if target.stat().st_size == known.size and hub.hashes(target)[0] == known.sha256:
            say(f"data {key}: already in {target}, verified")
            return target
    say(f"data {key}: downloading into {target}")
    staging = personal(data_dir / ".download")
    data_dir.mkdir(parents=True, exist_ok=True)
    got = hub.fetch(repo, file, staging, repo_type="dataset", revision=revision)
    got.path.replace(target)
    remove(staging)
    entry = DataEntry(
        source=f"hub:{repo}",
        file=file,
        commit=got.commit,
        size=got.size,
        sha256=got.sha256,
        path=os.path.abspath(target),
        date=now(),
    )
    cache_dir.mkdir(parents=True, exist_ok=True)
    add_entry(cache_dir, key, entry)
    say(f"data {key}: {got.size / 1e6:.1f} MB, verified")
    return target


def now() -> str:
    """Return the current UTC time in the manifest's format."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
