"""Checkpoints of a run: written atomically, read with suspicion.

A file `checkpoint-<step:08d>.pt` is whole or was damaged after it had been written, which the SHA-256 in its last line
tells (the CRC of the zip format leaves names, sizes and attributes of its parts unguarded, and some flipped bits there
load as other numbers). One that cannot be read is set aside as `*.bad`, and the one before it is used.

The checksum reveals accidents, not malice: a user who can write the file can write its checksum too. It is therefore
unpickled by torch's restricted reader (`weights_only`), which runs no code, and the types of its parts are checked.
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
OLDER = 2  # its fingerprint was made in another way, and it says nothing of the run's data
KEPT = 2
KINDS = {"format": int, "fingerprint": str, "step": int, "model": dict, "optimizer": dict, "progress": dict}
Expected = str | Callable[[int], str]  # the fingerprint that a checkpoint must have, or a function of its step
SEAL = b"\nsha256 "
SEAL_SIZE = len(SEAL) + hashlib.sha256().digest_size * 2 + 1


class DamagedError(Exception):
    """What is in the file is not what was written to it; the message says how that is known."""


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return run_dir / f"checkpoint-{step:08d}.pt"


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first."""
    return retry(run_dir, lambda: run_files.list_checkpoints(run_dir))


def save_torch(path: Path, value: object, guard: Callable[[], None] = lambda: None) -> None:
    """torch.save by `durable.replace`: the old file or the new one is there. Raises OSError where neither waiting nor
    writing again has helped."""
    replace(path, lambda file: torch.save(value, file), guard=guard)


def save(
    run_dir: Path,
    state: dict[str, Any],
    guard: Callable[[], None] = lambda: None,
    keep: int = KEPT,
    spare: int | None = None,
) -> Path:
    """Write the checkpoint of `state` (KINDS without format); once it is safe, drop all but the newest `keep` and the
    one of step `spare`.

    guard: called last before the file gets its name. Raises OSError.
    """
    path = checkpoint_path(run_dir, state["step"])
    replace(path, lambda file: _write_sealed(file, {"format": FORMAT, **state}), guard=guard)
    try:
        for old in checkpoints(run_dir)[keep:]:
            if checkpoint_step(old) != spare:
                old.unlink(missing_ok=True)
    except OSError as error:  # the next one will try again
        logger.warning(f"{error.filename}: {error.strerror}; an old checkpoint stays there")
    return path


def load(path: Path, fingerprint: Expected, own: bool = False) -> dict[str, Any]:
    """The state in one checkpoint file, on the CPU.

    own: the file is the one that `newest` has found. Raises UserError where the file is missing, damaged, or of a run
    with another configuration, or where an older version wrote it, which cannot tell.
    """
    try:
        state = _read(path)
    except DamagedError as error:
        raise UserError(f"{path}: not a readable checkpoint ({error}); name another file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name another file") from None
    if state["format"] == OLDER and not own:
        raise UserError(
            f"{path}: written by an older version of Ablatrix; only its own run goes on from it (--trainer.resume=auto)"
        )
    _require(state, path, fingerprint)
    return state


def newest(run_dir: Path, fingerprint: Expected) -> tuple[dict[str, Any], Path] | None:
    """State and path of the newest checkpoint that can be read; None where there is none.

    The folder's configuration must have been compared: one of an older version is taken as it is. Damaged ones are
    renamed to `*.bad` with a warning on stderr. Raises UserError where the checkpoint is of another
    configuration, OSError where the file system fails, MemoryError where a good one does not fit.
    """
    for path in checkpoints(run_dir):
        try:
            state = _read(path)
        except FileNotFoundError:  # an attempt that ends behind our back has dropped it
            continue
        except DamagedError as error:
            aside = _set_aside(path)
            logger.warning(f"{path} cannot be read ({error}); set aside as {aside.name}")
            continue
        if state["format"] == OLDER:
            logger.info(f"{path}: written by an older version of Ablatrix")
        _require(state, path, fingerprint)
        return state, path
    return None


def drop_after(run_dir: Path, step: int) -> None:
    """Remove the checkpoints of later steps: the run goes another way from here, or the same once more."""
    for path in checkpoints(run_dir):
        if path > checkpoint_path(run_dir, step):
            path.unlink(missing_ok=True)


def set_aside(run_dir: Path) -> None:
    """Rename all checkpoints to `*.bad`: nothing may resume from them, and nothing is thrown away."""
    for path in checkpoints(run_dir):
        _set_aside(path)


def sweep(run_dir: Path) -> None:
    """Remove temporary files that a killed attempt left behind. Whoever still writes one notices and writes anew."""
    for path in run_dir.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _set_aside(path: Path) -> Path:
    return path.replace(path.with_name(path.name + ".bad"))


def _read(path: Path) -> dict[str, Any]:
    """Raises DamagedError, and whatever else goes wrong for what is not the file's fault."""
    try:
        retry(path, lambda: _check_seal(path))
        state = retry(path, lambda: _load(path))
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DamagedError(error.strerror) from None  # waited for in vain: its place on the disk is gone
    if not isinstance(state, dict) or not set(state) >= set(KINDS):
        raise DamagedError("not a checkpoint of this program")
    if state["format"] not in (OLDER, FORMAT):
        raise DamagedError(f"written in format {state['format']!r:.20}, this version reads {OLDER} and {FORMAT}")
    if any(not isinstance(state[name], kind) or isinstance(state[name], bool) for name, kind in KINDS.items()):
        raise DamagedError("not a checkpoint of this program")
    return state


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a pickle made by hand leads to
        if is_out_of_memory(error):
            raise
        said = first_line(error)
        if "PytorchStreamReader" in said and "not found" not in said:
            # The file is as it was written: what torch, reading it with calls of its own, could not read is the disk's
            raise OSError(errno.EIO, said) from error
        if isinstance(error, pickle.UnpicklingError):
            said = "it holds more than tensors, numbers and words"  # torch would advise to load it all the same
        raise DamagedError(said) from None


def _check_seal(path: Path) -> None:
    """Raise DamagedError unless the file ends with its own checksum. Raises OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise DamagedError("not a file")
    with open_for_reading(path) as file:
        left = os.fstat(file.fileno()).st_size - SEAL_SIZE
        file.seek(max(left, 0))
        seal = file.read(SEAL_SIZE)
        if left < 0 or not seal.startswith(SEAL):
            raise DamagedError("its end is missing")
        digest = hashlib.sha256()
        file.seek(0)
        while left > 0 and (part := file.read(min(left, 1 << 20))):
            digest.update(part)
            left -= len(part)
    if seal != _seal(digest.hexdigest()):
        raise DamagedError("its checksum is wrong")


class _Hashing:
    """A binary file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _write_sealed(file: IO[bytes], state: dict[str, Any]) -> None:
    """A file of torch.save and one line: readers of zip files, torch.load among them, do not mind what comes after."""
    hashing = _Hashing(file)
    torch.save(state, hashing)  # type: ignore[arg-type]
    file.write(_seal(hashing.digest.hexdigest()))


def _seal(digest: str) -> bytes:
    return SEAL + digest.encode() + b"\n"


def _require(state: dict[str, Any], path: Path, fingerprint: Expected) -> None:
    wanted = fingerprint if isinstance(fingerprint, str) else fingerprint(state["step"])
    if state["fingerprint"] != wanted and state["format"] != OLDER:
        raise UserError(
            f"{path}: of a run with other settings (fingerprint {state['fingerprint']}, this one is {wanted}); "
            "choose another --system.work_dir, or name another checkpoint"
        )
