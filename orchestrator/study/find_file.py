"""Find an experiment file: a path, or a name on ABLATRIX_PATH; `file.yaml#large` refers to a config in a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEARCH_PATH = "ABLATRIX_PATH"
SUFFIXES = ("", ".yaml", ".yml")


@dataclass(frozen=True)
class Source:
    """An experiment file, or one of the configs in it."""

    path: Path
    config: str | None = None

    def __str__(self) -> str:
        return f"{self.path}#{self.config}" if self.config is not None else str(self.path)


def find(text: str, beside: Path = Path()) -> Source | None:
    """Return the file that `text` refers to, None if there is none.

    A path relative to the folder `beside` takes precedence over a name on ABLATRIX_PATH; the suffix may be omitted.
    """
    return next((source for source in _candidates(text, beside) if _is_file(source.path)), None)


def _candidates(text: str, beside: Path) -> Iterator[Source]:
    for source in _readings(text):
        yield Source(beside / source.path, source.config)
    for source in _readings(text):
        for folder in (*folders(), beside):
            for suffix in SUFFIXES:
                yield Source(folder / f"{source.path}{suffix}", source.config)


def read_name(text: str) -> Source:
    """Return the file and config that `text` refers to, whether or not the file exists."""
    return _readings(text)[-1]


def _readings(text: str) -> list[Source]:
    """Return the ways to interpret `text`, first as the name of a file, which may contain a `#`."""
    name, hash_sign, config = text.rpartition("#")
    return [Source(Path(text)), *([Source(Path(name), config)] if hash_sign and name else [])]


def folders() -> list[Path]:
    """Return the entries of ABLATRIX_PATH."""
    entries = filter(None, os.environ.get(SEARCH_PATH, "").split(os.pathsep))
    return [Path(os.path.expanduser(entry)) for entry in entries]  # noqa: PTH111  (Path raises for an unknown user)


def list_search_path() -> str:
    """Return the contents of ABLATRIX_PATH, for the message that a file does not exist; '' if it is not set."""
    offers = []
    for folder in folders():
        names = ", ".join(sorted(path.name for path in folder.glob("*.y*ml"))[:8]) or "no *.yaml"
        offers.append(f"{folder} has: {names}" if folder.is_dir() else f"{folder}: no such folder")
    return f"; on {SEARCH_PATH}, {'; '.join(offers)}" if offers else ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no permission; a NUL in the name
        return False
