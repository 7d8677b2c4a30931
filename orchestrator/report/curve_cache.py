"""Curves already read, kept by the SHA-256 of the loss.csv they come from. No pickle, and never trusted blindly."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ablatrix.trainer.rundir.files import atomic_write, make_folder, read_bytes

CURVES = ".curves.npz"
TRAIN = ("iter", "tokens", "loss", "lr", "grad_norm")
HELD_OUT = ("iter", "tokens", "seconds", "val_loss")
# Part of the cache: a change of what a Curve holds must not read old ones.
FORMAT = 2


@dataclass(frozen=True)
class Curve:
    """A loss.csv reduced for drawing.

    rows: as read; train: (len(TRAIN), G) means of groups of rows; held_out: (len(HELD_OUT), E) every evaluation.
    """

    rows: int
    infinite: int
    last_iter: float
    last_tokens: float
    last_seconds: float
    train: np.ndarray
    held_out: np.ndarray

    def column(self, name: str) -> np.ndarray:
        """A column of the training rows (G,)."""
        return self.train[TRAIN.index(name)]

    def evaluated(self, name: str) -> np.ndarray:
        """A column of the evaluations (E,)."""
        return self.held_out[HELD_OUT.index(name)]


def load(path: Path) -> dict[str, Curve]:
    """digest -> Curve; empty where there is no cache or it is not one."""
    try:
        raw = io.BytesIO(read_bytes(path))
        with zipfile.ZipFile(raw) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return {}  # none of ours, and may unfold to any size
        with np.load(raw, allow_pickle=False) as stored:
            data = {name: stored[name] for name in stored.files}
        if int(data["format"]) != FORMAT:
            return {}
        if not _is_whole(data):
            return {}
        train = np.split(data["train"], np.cumsum(data["groups"])[:-1], axis=1)
        held_out = np.split(data["held_out"], np.cumsum(data["evaluations"])[:-1], axis=1)
        return {
            str(digest): Curve(int(heads[0]), int(heads[1]), float(heads[2]), float(heads[3]), float(heads[4]), t, h)
            for digest, heads, t, h in zip(data["digest"], data["heads"], train, held_out, strict=True)
        }
    except Exception:  # whatever zipfile and numpy make of a damaged file: they promise nothing
        return {}


def _is_whole(data: Mapping[str, np.ndarray]) -> bool:
    """Are the parts as `save` writes them, and do they belong together?"""
    counted = (groups, evaluations) = data["groups"], data["evaluations"]
    runs = (len(data["digest"]),)
    numbers = all(data[name].dtype == np.float64 for name in ("heads", "train", "held_out"))
    counts = all(part.dtype == np.int64 and part.shape == runs and (part >= 0).all() for part in counted)
    return bool(
        numbers
        and counts
        and data["heads"].shape == (*runs, 5)
        and data["train"].shape == (len(TRAIN), groups.sum())
        and data["held_out"].shape == (len(HELD_OUT), evaluations.sum())
    )


def save(path: Path, curves: Mapping[str, Curve], known: Mapping[str, Curve]) -> None:
    """Write the cache if it would change. A cache that cannot be written costs time only, so no error comes of it."""
    if not curves or curves.keys() == known.keys():
        return
    digests = sorted(curves)
    chosen = [curves[d] for d in digests]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        format=np.array(FORMAT),
        digest=np.array(digests),
        heads=np.array([[c.rows, c.infinite, c.last_iter, c.last_tokens, c.last_seconds] for c in chosen]),
        groups=np.array([c.train.shape[1] for c in chosen]),
        evaluations=np.array([c.held_out.shape[1] for c in chosen]),
        train=np.concatenate([c.train for c in chosen], axis=1),
        held_out=np.concatenate([c.held_out for c in chosen], axis=1),
    )
    try:
        make_folder(path.parent)
        atomic_write(path, buffer.getvalue(), durable=False)
    except OSError:
        return
