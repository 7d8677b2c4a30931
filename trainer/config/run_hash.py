"""Hash and compare configurations, for the names of run folders and the fingerprints in checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def digest(identity: dict[str, Any]) -> str:
    """Return the first 8 hex digits of the SHA-256 of an identity."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def differences(there: dict[str, Any], here: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ between two identities, as dotted key -> (value there, value here)."""
    return {
        f"{section}.{name}": (value, here[section][name])
        for section, settings in there.items()
        for name, value in settings.items()
        if name in here[section] and here[section][name] != value
    }


def normalize_path(path: str) -> str:
    """Return a canonical path for a file: relative if inside the working folder, else absolute.

    Runs thus keep their names when a workspace is moved.
    """
    if not path:
        return path
    full, here = os.path.abspath(path), str(Path.cwd())
    for candidate in (full, os.path.realpath(full)):  # the working folder may have been reached through a link
        if candidate.startswith(here.rstrip(os.sep) + os.sep):
            return os.path.relpath(candidate, here)
    return full
