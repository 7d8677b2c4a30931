"""A copy of the code that a study was submitted with: what is edited later does not change a queued run."""

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
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.files import (
    atomic_write,
    create,
    is_own,
    make_folder,
    owner_name,
    personal,
    read_bytes,
    require_folder,
)
from ablatrix.trainer.rundir.program import ROOT

PACKAGE = "ablatrix"
LINKED = ("models", "orchestrator", "sbatch", "trainer")  # folders of a checkout to which links in PACKAGE point
NOT_FOR_JOBS = ("tests", "benchmarks", "docs", "tools")  # folders of a checkout; a study may still name modules there
NAME = re.compile("[0-9a-f]{16}")  # of a snapshot: the beginning of a hash of its content
LARGEST = 1 << 26  # bytes of a file of code


def code_root() -> Path:
    """The folder that holds the running packages (a checkout, or site-packages)."""
    return Path(ROOT).resolve()


def take(store: Path, own: Iterable[str] = ()) -> Path:
    """Copy the running code to `store/<hash>/` and return that folder, ready for PYTHONPATH.

    Content-addressed: the same code is stored once, however many studies use it. In a git checkout these are all
    Python files, tracked or not, that are not ignored, and the packages' templates, without tests, benchmarks and docs;
    elsewhere the installed packages.
    Files whose names say that they hold secrets (.env, *.pem) are left out.

    own: names of modules of the user's own, which the working folder may hold outside the running code.

    Jobs run what is in that folder, so it must be this user's: where another one has `store`, `<store>-<uid>` is used.
    Raises RunError where that is not so, OSError where it cannot be written.
    """
    files = _running(own)
    store = personal(store)
    make_folder(store, parents=True)
    target = store / _digest(files)
    if not os.path.lexists(target):
        _write(target, files)
    for half in store.glob(f".{target.name}.*.tmp"):  # of a submit that was killed, or whose work is done already
        shutil.rmtree(half, ignore_errors=True)
    for folder in (store, target):  # jobs run what is in them
        require_folder(folder)
        if not is_own(folder):
            raise RunError(f"{folder}: belongs to {owner_name(folder)}, and jobs would run that code; remove it")
    for name in _damaged(target, files):  # a purge of scratch takes files
        for folder in reversed((target / name).relative_to(target).parents[:-1]):
            make_folder(target / folder)
        atomic_write(target / name, files[name], durable=False)
    os.utime(target)  # in use: `clean` leaves it alone until a run names it
    return target


def _write(target: Path, files: Mapping[str, bytes]) -> None:
    """Make a snapshot's folder, whole; nothing happens where somebody else is first."""
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


def _read(places: Mapping[str, Path]) -> dict[str, bytes]:
    return {name: places[name].read_bytes() for name in sorted(places)}


def _digest(files: Mapping[str, bytes]) -> str:
    """The name of a snapshot with these files, which are sorted."""
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def lacking(snapshot: Path, own: Iterable[str] = ()) -> list[str] | None:
    """The files that were removed from a snapshot, or changed; [] where it is whole.

    It is named by its content, so that whatever lacks is noticed; None where the code has changed since, and nothing
    tells what it is.
    """
    names = sorted(str(p.relative_to(snapshot)) for p in snapshot.rglob("*") if p.is_file() and p.suffix != ".pyc")
    contents = {name: content for name in names if (content := _content(snapshot / name)) is not None}
    if len(contents) == len(names) and _digest(contents) == snapshot.name:
        return []
    files = _running(own)
    return _damaged(snapshot, files) if _digest(files) == snapshot.name else None


def _running(own: Iterable[str]) -> dict[str, bytes]:
    """The running code: name -> content."""
    root = code_root()
    return _read({**_own_files(Path.cwd(), own), **{name: root / name for name in _code_files(root)}})


def _damaged(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """Which of these files are not there as they should be."""
    return [name for name, content in files.items() if _content(folder / name) != content]


def _content(path: Path) -> bytes | None:
    try:
        return None if path.is_symlink() or path.stat().st_size > LARGEST else read_bytes(path)
    except OSError:
        return None


def _code_files(root: Path) -> Iterable[str]:
    """Without secrets, and without files that would hide Python's modules: jobs have this folder first on sys.path."""
    return {
        name for name in _listed(root) if not secrets.is_secret_file(name) and not is_taken(name.removesuffix(".py"))
    }


def _listed(root: Path) -> Iterable[str]:
    listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.py", *LINKED)
    if listed:
        names = {_as_imported(name) for name in listed.split("\0") if name and (root / name).is_file()}
        # a virtual environment that nobody told git to ignore is not code of the study, and is large
        environments = {top for top in {n.partition("/")[0] for n in names} if (root / top / "pyvenv.cfg").exists()}
        return {name for name in names if name.partition("/")[0] not in {*environments, *NOT_FOR_JOBS}}
    found = (os.path.join(top, name) for top, _, names in os.walk(root / PACKAGE, followlinks=True) for name in names)
    names = {os.path.relpath(path, root) for path in found if not path.endswith(".pyc")}
    return names | {HELPER} if (root / HELPER).is_file() else names


def _as_imported(name: str) -> str:
    """Return where the snapshot has a file of a checkout: below PACKAGE without links."""
    return f"{PACKAGE}/{name}" if name.partition("/")[0] in LINKED else name


def own_modules(value: Any) -> set[str]:
    """The top-level names of what a configuration refers to as `package.module:Class`."""
    if isinstance(value, dict | list | tuple):
        inner = value.values() if isinstance(value, dict) else value
        return set().union(*map(own_modules, inner))
    return {top_level(value)} if isinstance(value, str) and REFERENCE.fullmatch(value) else set()


def _own_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The modules of these names in the folder, and the single files beside them, which they may import.

    A job has them first on its path: those that an import here does not find are left out (random.py, yaml.py).
    """
    names = [name for name in names if is_imported_from(folder, name)]
    found = [path for name in names for path in ((folder / f"{name}.py"), *(folder / name).rglob("*.py"))]
    found = [path for path in found if path.is_file()]
    beside = [path for path in folder.glob("*.py") if is_imported_from(folder, path.stem)] if found else []
    return {str(path.relative_to(folder)): path for path in (*beside, *found)}


def git(*words: str) -> str:
    """Output of a git command in the checkout of the running code; '' where there is no checkout or no git."""
    root = code_root()
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), *words]
    try:
        result = subprocess.run(
            command, env=git_environment(), capture_output=True, text=True, timeout=30, check=False, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""


def git_environment() -> dict[str, str]:
    """Without GIT_DIR and the like, by which git would look at another repository: inside a hook they are set."""
    kept = ("GIT_CONFIG", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM", "GIT_EXEC_PATH", "GIT_TRACE")
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name.startswith(kept)}
