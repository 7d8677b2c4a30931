"""Checkpoints of a run: written atomically and verified before loading.

The last line of `checkpoint-<step:08d>.pt` is its SHA-256, which reveals corruption (the CRC of the zip format does not
cover the names, sizes and attributes of its parts, and some bit flips there load as different numbers). A corrupt
checkpoint is renamed to `*.bad`, and the previous one is used.

The checksum reveals accidents, not malice: a user who can write the file can write its checksum too. Checkpoints are
therefore loaded with torch's restricted unpickler (`weights_only`), which runs no code, and their types are checked.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from ablatrix.trainer.out_of_memory import first_line, is_out_of_memory
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.files import open_for_reading, replace, retry
from ablatrix.trainer.rundir.run_files import checkpoint_step

logger = logging.getLogger(__name__)

FORMAT = 3
KEPT = 2
KINDS = {"format": int, "fingerprint": str, "step": int, "model": dict, "optimizer": dict, "progress": dict}
Expected = str | Callable[[int], str]  # the fingerprint that a checkpoint must have, or a function from its step to it
SEAL = b"\nsha256 "
SEAL_SIZE = len(SEAL) + hashlib.sha256().digest_size * 2 + 1


class DamagedError(Exception):
    """The file is corrupt; the message says how this was detected."""


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Return the path of the checkpoint after `step` steps."""
    return run_dir / f"checkpoint-{step:08d}.pt"


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the checkpoints in a run folder, newest first. Raises OSError."""
    return retry(run_dir, lambda: run_files.list_checkpoints(run_dir))


def find_named(name: str) -> Path:
    """Return the checkpoint that `trainer.resume` names: a file, or the newest checkpoint in a run's folder.

    Raises UserError for a folder without checkpoints.
    """
    path = Path(name)
    if not path.is_dir():
        return path
    found = checkpoints(path)
    if not found:
        raise UserError(f"{path}: no checkpoint found; give another run's folder, or a checkpoint file")
    return found[0]


def save_torch(path: Path, value: object, guard: Callable[[], None] = lambda: None) -> None:
    """Replace a file atomically, using torch.save. Raises OSError like `files.replace`."""
    replace(path, lambda file: torch.save(value, file), guard=guard)


def save(
    run_dir: Path,
    state: dict[str, Any],
    guard: Callable[[], None] = lambda: None,
    keep: int = KEPT,
    spare: int | None = None,
) -> Path:
    """Write a checkpoint of `state` (KINDS without format), then remove all but the newest `keep` checkpoints.

    guard: called just before the file is renamed into place. spare: step of another checkpoint to keep. Raises OSError.
    """
    path = checkpoint_path(run_dir, state["step"])
    replace(path, lambda file: _write_sealed(file, {"format": FORMAT, **state}), guard=guard)
    try:
        for old in checkpoints(run_dir)[keep:]:
            if checkpoint_step(old) != spare:
                old.unlink(missing_ok=True)
    except OSError as error:  # the next save will try again
        logger.warning(f"{error.filename}: {error.strerror}; an old checkpoint remains there")
    return path


def load(path: Path, fingerprint: Expected) -> dict[str, Any]:
    """Return the state from one checkpoint file, on the CPU.

    Raises UserError if the file is missing, corrupt, or from a run with a different configuration.
    """
    try:
        state = _read(path)
    except DamagedError as error:
        raise UserError(f"{path}: not a readable checkpoint ({error}); choose another file") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; choose another file") from None
    _require(state, path, fingerprint)
    return state


def newest(run_dir: Path, fingerprint: Expected) -> tuple[dict[str, Any], Path] | None:
    """Return the state and path of the newest readable checkpoint, None if there is none.

    Corrupt checkpoints are renamed to `*.bad` with a warning. Raises UserError if the checkpoint has a different
    configuration, OSError if the file system fails, MemoryError if an intact checkpoint does not fit in memory.
    """
    for path in checkpoints(run_dir):
        try:
            state = _read(path)
        except FileNotFoundError:  # removed by another attempt that is ending
            continue
        except DamagedError as error:
            set_aside(path)
            logger.warning(f"{path} cannot be read ({error}); set aside as {path.name}.bad")
            continue
        _require(state, path, fingerprint)
        return state, path
    return None


def drop_after(run_dir: Path, step: int) -> None:
    """Remove the checkpoints after the given step."""
    for path in checkpoints(run_dir):
        if path > checkpoint_path(run_dir, step):
            path.unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Rename a checkpoint to `*.bad`, so that no run resumes from it."""
    path.replace(path.with_name(f"{path.name}.bad"))


def remove_temporary_files(run_dir: Path) -> None:
    """Remove temporary files of killed attempts; a process that is still writing one notices and writes it again."""
    for path in run_dir.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state. Raises DamagedError, or OSError or MemoryError if the file is not to blame."""
    try:
        retry(path, lambda: _check_seal(path))
        state = retry(path, lambda: _load(path))
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DamagedError(error.strerror) from None  # retries did not help: the disk has lost the data
    if not isinstance(state, dict) or not set(state) >= set(KINDS):
        raise DamagedError("not a checkpoint of this program")
    if state["format"] != FORMAT:
        raise DamagedError(f"written in format {state['format']!r:.20}, this version reads {FORMAT}")
    if any(not isinstance(state[name], kind) or isinstance(state[name], bool) for name, kind in KINDS.items()):
        raise DamagedError("not a checkpoint of this program")
    return state


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a forged pickle can raise anything
        if is_out_of_memory(error):
            raise
        message = first_line(error)
        if "PytorchStreamReader" in message and "not found" not in message:
            # The checksum was correct, so the disk has failed since
            raise OSError(errno.EIO, message) from error
        if isinstance(error, pickle.UnpicklingError):
            message = "it contains more than tensors, numbers and strings"  # torch's message advises loading it anyway
        raise DamagedError(message) from None


def _check_seal(path: Path) -> None:
    """Raise DamagedError unless the file ends with its own checksum. Raises OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DamagedError("not a file")
    with open_for_reading(path) as file:
        left = os.fstat(file.fileno()).st_size - SEAL_SIZE
        file.seek(max(left, 0))
        seal = file.read(SEAL_SIZE)
        if left < 0 or not seal.startswith(SEAL):
            raise DamagedError("it is truncated")
        digest = hashlib.sha256()
        file.seek(0)
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
    if seal != _seal(digest.hexdigest()):
        raise DamagedError("its checksum does not match")


class _Hashing:
    """A binary file that hashes everything written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write_sealed(file: IO[bytes], state: dict[str, Any]) -> None:
    """Write a torch.save file followed by the seal, which readers of zip files, including torch.load, ignore."""
    hashing = _Hashing(file)
    torch.save(state, hashing)  # type: ignore[arg-type]
    file.write(_seal(hashing.digest.hexdigest()))


def _seal(digest: str) -> bytes:
    return SEAL + digest.encode() + b"\n"


def _require(state: dict[str, Any], path: Path, fingerprint: Expected) -> None:
    wanted = fingerprint if isinstance(fingerprint, str) else fingerprint(state["step"])
    if state["fingerprint"] != wanted:
        raise UserError(
            f"{path} is from a run with different settings (fingerprint {state['fingerprint']}, here {wanted}); "
            "choose another --system.work_dir, or another checkpoint"
        )
