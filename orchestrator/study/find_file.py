"""Find an experiment file by its path; `file.yaml#large` is a config in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SUFFIXES = ("", ".yaml", ".yml")


@dataclass(frozen=True)
class Source:
    """An experiment file, or one of the configs in it."""

    path: Path
    config: str | None = None

    def __str__(self) -> str:
        return f"{self.path}#{self.config}" if self.config is not None else str(self.path)


def find(text: str, beside: Path = Path()) -> Source | None:
    """Return the file that `text` names, None if there is none. The suffix may be left out.

    beside: the folder that a relative path starts from.
    """
    readings = [(suffix, source) for suffix in SUFFIXES for source in _readings(text)]
    found = (Source(beside / f"{source.path}{suffix}", source.config) for suffix, source in readings)
    return next((source for source in found if _is_file(source.path)), None)


def read_name(text: str) -> Source:
    """Return the file and config that `text` names, whether or not the file exists."""
    return _readings(text)[-1]


def _readings(text: str) -> list[Source]:
    """Return the ways to read `text`: a file may have a `#` in its name, which comes first."""
    name, hash_sign, config = text.rpartition("#")
    return [Source(Path(text)), *([Source(Path(name), config)] if hash_sign and name else [])]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no permission; a NUL in the name
        return False
