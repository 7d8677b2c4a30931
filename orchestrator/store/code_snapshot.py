"""Snapshots of the code that studies are submitted with, so that later edits do not change queued runs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ablatrix.models.reference import REFERENCE, is_imported_from, is_taken, top_level
from ablatrix.orchestrator.study import secrets
from ablatrix.orchestrator.study.command import HELPER
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.files import atomic_write, create, make_folder, read_bytes, require_folder
from ablatrix.trainer.rundir.owners import is_own, owner_name, personal
from ablatrix.trainer.rundir.program import ROOT

PACKAGE = "ablatrix"
LINKED = ("models", "orchestrator", "sbatch", "trainer")  # folders of a checkout that links in PACKAGE point to
NOT_FOR_JOBS = ("tests", "benchmarks", "docs", "tools")  # folders of a checkout; studies may refer to modules there
_MAY_REFER = re.compile(r"\w:\w")  # in a configuration's text, where a key's colon is followed by a space
NAME = re.compile("[0-9a-f]{16}")  # of a snapshot: the first digits of its content's hash


def code_root() -> Path:
    """Return the folder that contains the running packages: a checkout, or site-packages."""
    return Path(ROOT).resolve()


def take(store: Path, modules: Iterable[str] = ()) -> Path:
    """Copy the running code to `store/<hash>/` and return that folder, ready for PYTHONPATH.

    Content-addressed: the same code is stored once, however many studies use it. In a git checkout, the code is all
    Python files that git does not ignore and the packages' templates, without tests, benchmarks and docs; elsewhere,
    the installed packages. Files whose names suggest secrets (.env, *.pem) are left out.

    modules: names of the user's own modules, looked up in the working folder.

    Jobs run this code, so the folder must belong to this user: if another user owns `store`, `<store>-<uid>` is used.
    Raises RunError if the folder is not ours, OSError if it cannot be written.
    """
    files = _running_code(modules)
    store = personal(store)
    make_folder(store, parents=True)
    target = store / _digest(files)
    if not os.path.lexists(target):
        _create(target, files)
    for half in store.glob(f".{target.name}.*.tmp"):  # left by a submit that was killed
        shutil.rmtree(half, ignore_errors=True)
    for folder in (store, target):
        require_folder(folder)
        if not is_own(folder):
            raise RunError(f"{folder} is owned by {owner_name(folder)}, and jobs would run that code; remove it")
    for name in _different(target, files):  # removed, for example by a purge of scratch
        for folder in reversed((target / name).relative_to(target).parents[:-1]):
            make_folder(target / folder)
        atomic_write(target / name, files[name], durable=False)
    os.utime(target)  # `clean` keeps a snapshot that was used recently
    return target


def _create(target: Path, files: Mapping[str, bytes]) -> None:
    """Create a snapshot's folder atomically, by a rename; if another submit is faster, keep its folder."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    temporary.mkdir()
    try:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            create(temporary / name, content)
        temporary.rename(target)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if not target.is_dir():
            raise


def _digest(files: Mapping[str, bytes]) -> str:
    """Return the name of a snapshot of these files."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name}\0{len(files[name])}\0".encode() + files[name])
    return digest.hexdigest()[:16]


def removed_files(snapshot: Path, runs: Iterable[Path] = ()) -> list[str] | None:
    """Return the files that were removed from a snapshot or changed in it; [] if its content matches its name.

    None if it does not match but the files are unknown because the running code has changed since. runs: folders of
    runs whose own modules the snapshot may contain.
    """
    names = [str(p.relative_to(snapshot)) for p in snapshot.rglob("*") if p.is_file() and p.suffix != ".pyc"]
    contents = {name: content for name in names if (content := _content(snapshot / name)) is not None}
    if len(contents) == len(names) and _digest(contents) == snapshot.name:
        return []
    files = _running_code(own_modules_of(runs))
    return _different(snapshot, files) if _digest(files) == snapshot.name else None


def _running_code(modules: Iterable[str]) -> dict[str, bytes]:
    """Return the running code as name -> content."""
    root = code_root()
    paths = {**_own_files(Path.cwd(), modules), **{name: root / name for name in _code_files(root)}}
    return {name: paths[name].read_bytes() for name in sorted(paths)}


def _different(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """Return the names of the files that are missing in the folder or have different content there."""
    return [name for name, content in files.items() if _content(folder / name) != content]


def _content(path: Path) -> bytes | None:
    try:
        return None if path.is_symlink() else read_bytes(path)
    except OSError:
        return None


def _code_files(root: Path) -> Iterable[str]:
    """Return the files of the running code, without secrets and without files that would hide Python's own modules."""
    return {
        name for name in _listed(root) if not secrets.is_secret_file(name) and not is_taken(name.removesuffix(".py"))
    }


def _listed(root: Path) -> Iterable[str]:
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.py", *LINKED)
    if listed:
        found = [name for name in listed.split("\0") if name and (root / name).is_file()]
        # a snapshot has these folders below PACKAGE, which only links to them in a checkout
        names = {f"{PACKAGE}/{name}" if name.partition("/")[0] in LINKED else name for name in found}
        # leave out a virtual environment that git does not ignore: it is large and not the study's code
        environments = {top for top in {n.partition("/")[0] for n in names} if (root / top / "pyvenv.cfg").exists()}
        return {name for name in names if name.partition("/")[0] not in {*environments, *NOT_FOR_JOBS}}
    paths = (Path(top, name) for top, _, names in os.walk(root / PACKAGE, followlinks=True) for name in names)
    names = {str(path.relative_to(root)) for path in paths if path.suffix != ".pyc"}
    return names | {HELPER} if (root / HELPER).is_file() else names


def own_modules(value: Any) -> set[str]:
    """Return the top-level names of modules that a configuration refers to as `package.module:Class`."""
    if isinstance(value, dict | list | tuple):
        inner = value.values() if isinstance(value, dict) else value
        return set().union(*map(own_modules, inner))
    return {top_level(value)} if isinstance(value, str) and REFERENCE.fullmatch(value) else set()


def own_modules_of(runs: Iterable[Path]) -> set[str]:
    """Return `own_modules` of the configurations in these run folders."""
    texts = (run_files.read_text(folder / run_files.CONFIG) for folder in runs)
    return set().union(*(own_modules(run_files.parse_json(text)) for text in texts if _MAY_REFER.search(text)))


def _own_files(folder: Path, modules: Iterable[str]) -> dict[str, Path]:
    """Return the files of these modules in the folder, and the single-file modules beside them, which they may import.

    They come first on a job's path, so files that an import here would not find (random.py, yaml.py) are left out.
    """
    modules = [name for name in modules if is_imported_from(folder, name)]
    found = [path for name in modules for path in ((folder / f"{name}.py"), *(folder / name).rglob("*.py"))]
    found = [path for path in found if path.is_file()]
    beside = [path for path in folder.glob("*.py") if is_imported_from(folder, path.stem)] if found else []
    return {str(path.relative_to(folder)): path for path in (*beside, *found)}


def git(*words: str) -> str:
    """Return the output of a git command in the checkout of the running code; '' without a checkout or git."""
    root = code_root()
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), *words]
    try:
        result = subprocess.run(
            command, env=_git_environment(), capture_output=True, text=True, timeout=30, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""


def _git_environment() -> dict[str, str]:
    """Return the environment without GIT_DIR and the like, which point to another repository inside a git hook."""
    kept = ("GIT_CONFIG", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM", "GIT_EXEC_PATH", "GIT_TRACE")
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name.startswith(kept)}
