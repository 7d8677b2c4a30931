"""Checkpoints of a run: written atomically, read with suspicion.

A file `checkpoint-<step:08d>.pt` is either whole or was damaged after it had been written; one that cannot be read is
set aside as `*.bad`, and the one before it is used.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from trainer.errors import RunError, UserError
from trainer.runlog import sync_folder

FORMAT = 1
KEPT = 2
KEYS = {"format", "fingerprint", "step", "model", "optimizer", "progress"}
# what torch.load raises on files that were cut, overwritten or made by something else
DAMAGED = (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError, ValueError, AttributeError)


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return run_dir / f"checkpoint-{step:08d}.pt"


def checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run folder, newest first."""
    return sorted(run_dir.glob("checkpoint-" + "[0-9]" * 8 + ".pt"), reverse=True)


def save_torch(path: Path, value: object) -> None:
    """torch.save, atomically: tmp in the same folder, fsync, rename, fsync of the folder. Raises RunError."""
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                torch.save(value, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunError(
            f"{path}: could not be written ({reason}); free some space and start the same command again"
        ) from error


def save(run_dir: Path, state: dict[str, Any]) -> Path:
    """Write the checkpoint of `state` (KEYS without format) and drop all but the newest KEPT. Raises RunError."""
    path = checkpoint_path(run_dir, state["step"])
    save_torch(path, {"format": FORMAT, **state})
    for old in checkpoints(run_dir)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path, fingerprint: str) -> dict[str, Any]:
    """The state in one checkpoint file, on the CPU.

    Raises UserError where the file is missing, damaged, or of a run with another configuration.
    """
    try:
        state = _read(path)
    except DAMAGED as error:
        raise UserError(f"{path}: not a readable checkpoint ({_first_line(error)}); name another file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name another file") from None
    _require(state, path, fingerprint)
    return state


def newest(run_dir: Path, fingerprint: str) -> tuple[dict[str, Any], Path] | None:
    """State and path of the newest checkpoint that can be read; None where there is none.

    Damaged ones are renamed to `*.bad` with a warning on stderr. Raises UserError where the checkpoint is of another
    configuration, OSError where the file system fails.
    """
    for path in checkpoints(run_dir):
        try:
            state = _read(path)
        except DAMAGED as error:
            aside = path.with_name(path.name + ".bad")
            os.replace(path, aside)
            print(f"warning: {path} cannot be read ({_first_line(error)}); set aside as {aside.name}", file=sys.stderr)
            continue
        _require(state, path, fingerprint)
        return state, path
    return None


def sweep(run_dir: Path) -> None:
    """Remove temporary files that a killed attempt left behind."""
    for pattern in (".checkpoint-*.pt.*.tmp", ".model.pt.*.tmp"):
        for path in run_dir.glob(pattern):
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch.load does not look at the checksums
    if damaged is not None:
        raise RuntimeError(f"checksum of {damaged} is wrong")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not set(state) >= KEYS:
        raise RuntimeError("not a checkpoint of this program")
    if state["format"] != FORMAT:
        raise RuntimeError(f"written in format {state['format']}, this version reads {FORMAT}")
    return state


def _require(state: dict[str, Any], path: Path, fingerprint: str) -> None:
    if state["fingerprint"] != fingerprint:
        raise UserError(
            f"{path}: of a run with another configuration (fingerprint {state['fingerprint']}, this one is "
            f"{fingerprint}); choose another --system.work_dir, or name another checkpoint"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
