"""Malicious pickles, checkpoints and arrays, whose objects make a file `canary` when they are loaded."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ablatrix.trainer import checkpoint


class Acts:
    """Calls `function(*arguments)` when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def gadgets(canary: Path) -> dict[str, Any]:
    """Return objects that make `canary` when they are unpickled."""
    return {
        "os.system": Acts(os.system, f"touch '{canary}'"),
        "eval": Acts(eval, f"open({str(canary)!r}, 'w').close()"),
        "open": Acts(open, str(canary), "w"),
        "an array of objects": np.array([Acts(os.system, f"touch '{canary}'")], dtype=object),
    }


def saved(value: Any, zipped: bool = True) -> bytes:
    """Return what torch.save writes, in today's format or in the one before zip files."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def sealed(content: bytes) -> bytes:
    """Return the content with the checksum of a whole checkpoint, which anyone who can write a file can write too."""
    return content + checkpoint._seal(hashlib.sha256(content).hexdigest())


def replaced(content: bytes, part: str, new: bytes) -> bytes:
    """Return a zip file with another content of the part whose name ends so."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as archive:
        for info in old.infolist():
            archive.writestr(info.filename, new if info.filename.endswith(part) else old.read(info))
    return made.getvalue()


def malicious(state: dict[str, Any], canary: Path) -> dict[str, bytes]:
    """Return checkpoints of `state` with an object that acts in them, without their checksums."""
    found, whole = {}, {"format": checkpoint.FORMAT, **state}
    for name, gadget in gadgets(canary).items():
        found[f"{name} beside the weights"] = saved({**whole, "more": gadget})
        found[f"{name} among the weights"] = saved({**whole, "model": {**state["model"], "w": gadget}})
        found[f"{name} in the old format"] = saved({**whole, "step": gadget}, zipped=False)
        found[f"{name} as a plain pickle"] = pickle.dumps(gadget)
        found[f"{name} as data.pkl"] = replaced(saved(whole), "/data.pkl", pickle.dumps(gadget, 2))
    return found


def arrays(canary: Path) -> bytes:
    """Return a .npz whose arrays are of objects that act."""
    buffer = io.BytesIO()
    names = ("format", "digest", "heads", "groups", "evaluations", "train", "held_out")
    np.savez(buffer, allow_pickle=True, **dict.fromkeys(names, gadgets(canary)["an array of objects"]))
    return buffer.getvalue()
