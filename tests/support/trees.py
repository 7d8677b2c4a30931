"""The content of a folder, for comparison with its earlier content."""

from __future__ import annotations

import hashlib
from pathlib import Path


def list_tree(folder: Path) -> list[tuple[str, int, int, str]]:
    """Return path, mode, time and content of everything below a folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found.append((str(path), path.lstat().st_mode, path.lstat().st_mtime_ns, content))
    return found
