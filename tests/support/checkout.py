"""Copies of the code under test."""

import shutil
from pathlib import Path

from ablatrix.orchestrator.store import code_snapshot


def copy_checkout(target: Path) -> None:
    """Copy the package and the folders that its links point to."""
    for name in (code_snapshot.PACKAGE, *code_snapshot.LINKED):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(code_snapshot.code_root() / name, target / name, symlinks=True, ignore=ignored)
