"""Hash and compare configurations, for the names of run folders and the fingerprints in checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def digest(identity: dict[str, Any]) -> str:
    """Return the first 8 hex digits of the SHA-256 of an identity."""
    return _hash(_canonical(identity))


def digest_by_seed(identity: dict[str, Any]) -> Callable[[int], str]:
    """Return a function from a seed to the `digest` of an identity with it; the rest is written as JSON once."""
    before, after = _canonical({**identity, "system": {**identity["system"], "seed": "?"}}).split('"seed":"?"')
    return lambda seed: _hash(f'{before}"seed":{seed}{after}')


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash(text: str) -> str:
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
    here = str(Path.cwd()).rstrip(os.sep) + os.sep
    for canonical in (os.path.abspath, os.path.realpath):  # the working folder may have been reached through a link
        if (full := canonical(path)).startswith(here):
            return full.removeprefix(here)
    return os.path.abspath(path)
