"""Where an experiment file is: a path, or a name on ABLATRIX_PATH; `file.yaml#large` means a config within it."""

from __future__ import annotations

import os
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
    """The file that `text` means: in the folder `beside`, by name on ABLATRIX_PATH, or beside with a suffix added.

    None: nowhere.
    """
    for source in _readings(text):
        if _is_file(beside / source.path):
            return Source(beside / source.path, source.config)
    for source in _readings(text):
        for folder in (*folders(), beside) if not source.path.is_absolute() else (beside,):
            for suffix in SUFFIXES:
                path = folder / f"{source.path}{suffix}"
                if _is_file(path):
                    return Source(path, source.config)
    return None


def meant(text: str) -> Source:
    """What `text` says where there is no such file."""
    return _readings(text)[-1]


def _readings(text: str) -> list[Source]:
    """A `#` may also stand in a file's name: such a file comes first."""
    name, hash_sign, config = text.rpartition("#")
    return [Source(Path(text)), *([Source(Path(name), config)] if hash_sign and name else [])]


def folders() -> list[Path]:
    """The entries of ABLATRIX_PATH."""
    return [Path(os.path.expanduser(entry)) for entry in os.environ.get(SEARCH_PATH, "").split(os.pathsep) if entry]


def elsewhere() -> str:
    """For the message that a file is nowhere: what ABLATRIX_PATH has. '' where it is not set."""
    told = []
    for folder in folders():
        names = sorted(path.name for path in folder.glob("*.y*ml"))[:8] if folder.is_dir() else None
        told.append(f"{folder} is no folder" if names is None else f"{folder} has: {', '.join(names) or 'no *.yaml'}")
    return f"; on {SEARCH_PATH}, {'; '.join(told)}" if told else ""


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no right to look; a NUL in the name
        return False
