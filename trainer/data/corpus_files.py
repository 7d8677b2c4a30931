"""Find the files of a corpus: one file, a folder of shards, a pattern, or a list. Torch-free."""

from __future__ import annotations

import difflib
import glob
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.trainer.rundir.errors import DataError

if TYPE_CHECKING:
    from ablatrix.trainer.config import DataConfig

COMPRESSIONS = (".gz", ".zst", ".zstd", ".xz", ".bz2", ".lzma")
KINDS = (
    (".jsonl", ".ndjson"),
    (".json",),
    (".bin",),
    (".parquet",),
    (".txt",),
)  # suffixes of shards in a folder; the first kind found is used
TEXTS = 4  # index of .txt
FOREIGN = (".arrow", ".feather", ".csv", ".tsv", ".zip", ".tar", ".npy", ".pkl")
METADATA = (
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "metadata.json",
    "config.json",
)
# Splits, recognized by file name: train.bin, fineweb_val_000000.bin, test-00000-of-00001.parquet
TRAINING = re.compile(r"(?:^|[._-])train", re.IGNORECASE)
VALIDATION = re.compile(r"(?:^|[._-])(?:val|valid|validation|dev)(?:[._-]|\d|$)", re.IGNORECASE)
TEST = re.compile(r"(?:^|[._-])(?:eval|test)(?:[._-]|\d|$)", re.IGNORECASE)


def find_files(config: DataConfig) -> tuple[Path, ...]:
    """Return the files of `data.file_path`: in the order listed; files of a folder or pattern are sorted by name.

    If a folder or pattern has, by name, both training files and validation or test files, only the training files are
    returned. Raises DataError if there are no files, or if one is listed twice.
    """
    setting = config.files_setting
    found = [path for entry in config.entries for path in _training_of(_expand(entry, setting), entry, setting)]
    if not found:
        raise DataError(f"{setting}: missing; give the path of a JSONL file")
    seen: dict[str, Path] = {}
    for path in found if len(found) > 1 else ():
        other = seen.setdefault(os.path.realpath(path), path)
        if other is not path:
            alias = "" if str(other) == str(path) else f" (as {other} too)"
            raise DataError(f"{setting}: {path} is listed twice{alias}; list each file once")
    if len({is_flat(path) for path in found}) > 1:
        raise DataError(f"{setting}: both .bin files of token ids and text files; list one kind")
    return tuple(found)


def find_validation(config: DataConfig) -> tuple[Path, ...]:
    """Return the validation files of a corpus, or else its test files, recognized by name; () if there are none.

    They come from a folder or pattern that also has training files, or are next to a .bin file (train.bin and val.bin).
    """
    files, setting = find_files(config), config.files_setting
    beside = {path for entry in config.entries for path in _expand(entry, setting)} - set(files)
    if is_flat(files[0]):
        beside |= set(files[0].parent.glob("*.bin"))
    starts = {_start(TRAINING, path) for path in files} - {None}
    for kind in (VALIDATION, TEST):
        found = sorted(p for p in beside if not TRAINING.search(p.name) and _start(kind, p) in starts)
        if found:
            return tuple(found)
    return ()


def _start(kind: re.Pattern[str], path: Path) -> str | None:
    """Return the part of a file's name before its split ("fineweb" in fineweb_val_000000.bin); None without a split."""
    match = kind.search(path.name)
    return path.name[: match.start()] if match else None


def _training_of(paths: list[Path], entry: str, setting: str) -> list[Path]:
    """Return only the training files if, by name, there are both training files and files of other splits; else all.

    Raises DataError if there are both and `setting` names held-out files.
    """
    training = [path for path in paths if TRAINING.search(path.name)]
    if not training or not any(kind.search(p.name) for p in set(paths) - set(training) for kind in (VALIDATION, TEST)):
        return paths
    if setting != "data.file_path":
        raise DataError(f"{setting}: {entry} includes the training split; give only held-out files, such as '*val*'")
    return training


def describe_files(config: DataConfig, files: Sequence[Path]) -> str:
    """Return the name of a corpus for use in messages."""
    if len(files) == 1:
        return str(files[0])
    return f"{config.file_path if isinstance(config.file_path, str) else files[0].parent} ({len(files)} files)"


def is_flat(path: Path) -> bool:
    """True if a file contains token ids, judging by its name."""
    return path.suffix == ".bin"


def are_whole_texts(config: DataConfig, files: Sequence[Path]) -> bool:
    """True if each plain text file of a corpus is one document."""
    return config.text_files == "documents" or (config.text_files == "auto" and len(files) > 1)


def file_stamp(path: Path, setting: str = "data.file_path") -> tuple[int, int]:
    """Return (size, mtime_ns) of a data file. Raises DataError if it does not exist or is not a regular file.

    setting: the setting that names the file, for the message.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise explain_missing(path, error, setting) from None
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{setting}: {path} is a folder; give the path of a JSONL file")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{setting}: cannot read {path}: not a regular file")
    return status.st_size, status.st_mtime_ns


def total_size(config: DataConfig) -> int:
    """Return the total size of a corpus in bytes. Raises DataError like `find_files`."""
    return sum(file_stamp(path, config.files_setting)[0] for path in find_files(config))


def _expand(entry: str, setting: str) -> list[Path]:
    path = Path(entry)
    if not entry:
        return []
    if os.path.isdir(path):
        return _shards(path, setting)
    if glob.has_magic(entry) and not os.path.lexists(entry):
        matches = glob.glob(entry, recursive=True)  # noqa: PTH207  (Path.glob does not accept absolute patterns)
        found = sorted(Path(match) for match in matches if not os.path.isdir(match))
        if not found:
            raise DataError(f"{setting}: no file matches {entry!r} (looked in {Path.cwd()}){_brace_hint(entry)}")
        return found
    return [path]


def _brace_hint(entry: str) -> str:
    return "; only shells expand {a..b}, use * ? [0-9] or a list" if "{" in entry else ""


def _shards(folder: Path, setting: str) -> list[Path]:
    """Return the data files in a folder, sorted by name. Raises DataError if there are none."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{setting}: cannot read {folder}: {error.strerror}") from None
    names = [entry for entry in entries if not entry.is_dir() and entry.name not in METADATA]
    groups = [[entry for entry in names if plain_suffix(entry) in kind] for kind in KINDS]
    if groups[2] and (groups[0] or groups[1]):
        raise DataError(f"{setting}: {folder} contains both .bin and .jsonl files; give a pattern ({folder}/*.bin)")
    foreign = [entry for entry in names if plain_suffix(entry) in FOREIGN]
    if foreign:
        del groups[TEXTS]  # probably a README.txt next to the data
    chosen = next((group for group in groups if group), [])
    # No supported file: the content of the first file of a different kind then determines the advice
    chosen = chosen or foreign[:1]
    if not chosen:
        there = ", ".join(entry.name + "/" * entry.is_dir() for entry in entries[:5]) or "nothing"
        raise DataError(
            f"{setting}: {folder} is a folder without .jsonl, .json, .parquet, .txt or .bin files (it has "
            f"{there}); give the path of a JSONL file, or a pattern such as 'folder/*/*.jsonl.gz'"
        )
    return chosen


def plain_suffix(path: Path) -> str:
    """Return the suffix of a file's name without a compression suffix: `.jsonl` for x.jsonl.gz."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSIONS else suffix


def explain_missing(path: Path, error: OSError | ValueError, setting: str) -> DataError:
    """Return the error for a file that cannot be read, with what is missing and the closest existing name."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return DataError(f"{setting}: cannot read {str(path)!r}: {reason}")
    if path.is_symlink():
        return DataError(f"{setting}: {path} is a link to {path.readlink()}, which does not exist")
    text = f"{setting}: {path} does not exist"
    if not path.is_absolute():
        text += f" (looked in {Path.cwd()})"
    missing = next((p for p in reversed(path.parents) if not os.path.lexists(p)), None)
    if missing is not None:
        return DataError(f"{text}; nor does {missing}{_nearest(missing)}")
    return DataError(text + (_brace_hint(path.name) or _nearest(path)))


def _nearest(path: Path) -> str:
    try:
        names = {entry.name.casefold(): entry.name for entry in path.parent.iterdir()}
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name.casefold(), names, 1, 0.75)
    return f" (did you mean {path.with_name(names[near[0]])}?)" if near else ""
