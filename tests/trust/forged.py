"""Files made by hand to harm whoever loads them: pickles that act, parts that grow, things that are no file.

Every gadget makes the file `canary` if it gets to act.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
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
    """Objects that make `canary` when they are unpickled."""
    code = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Acts(os.system, f"touch '{canary}'"),
        "exec": Acts(exec, code),
        "eval": Acts(eval, code),
        "open": Acts(open, str(canary), "w"),
        "Path.touch": Acts(Path.touch, canary),
        "a torch.load without safety": Acts(_load_all, str(canary) + ".pt"),
        "an array of objects": np.array([Acts(os.system, f"touch '{canary}'")], dtype=object),
    }


def _load_all(path: str) -> Any:
    return torch.load(path, weights_only=False)


def saved(value: Any, zipped: bool = True) -> bytes:
    """What torch.save writes, in today's form or the one before."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def sealed(content: bytes) -> bytes:
    """With the checksum that makes it a whole checkpoint: whoever can write a file can write that too."""
    return content + checkpoint._seal(hashlib.sha256(content).hexdigest())


def changed(content: bytes, part: str, new: bytes | None, packed: bool = False) -> bytes:
    """A zip file with another content of the parts whose names end so; None: without them."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as archive:
        for info in old.infolist():
            data = new if info.filename.endswith(part) else old.read(info)
            if data is not None:
                archive.writestr(info.filename, data, zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED)
    return made.getvalue()


def malicious(state: dict[str, Any], canary: Path) -> dict[str, bytes]:
    """Checkpoints of `state` with something that acts in them, and files that are something else. Without checksums."""
    found = {}
    whole = {"format": checkpoint.FORMAT, **state}
    for name, gadget in gadgets(canary).items():
        found[f"{name} beside the weights"] = saved({**whole, "more": gadget})
        found[f"{name} among the weights"] = saved({**whole, "model": {**state["model"], "w": gadget}})
        found[f"{name} as the step, in the old form"] = saved({**whole, "step": gadget}, zipped=False)
        for protocol in (0, 2, 4):
            found[f"{name} as a plain pickle of protocol {protocol}"] = pickle.dumps(gadget, protocol)
            inner = pickle.dumps(gadget, protocol)
            found[f"{name} as data.pkl of protocol {protocol}"] = changed(saved(whole), "/data.pkl", inner)
    system = pickle.dumps(gadgets(canary)["os.system"], 0)
    # the reference to a tensor's storage is itself an object
    found["os.system in a reference"] = changed(saved(whole), "/data.pkl", b"\x80\x02" + system[:-1] + b"Q.")
    found["a tar file"] = _tar({"storages": system, "tensors": system, "pickle": system})
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)  # type: ignore[no-untyped-call]
    found["a TorchScript archive"] = buffer.getvalue()
    found["arrays"] = arrays(canary, "npz")
    return found


def _tar(parts: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in parts.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def arrays(canary: Path, kind: str) -> bytes:
    """A .npy or .npz whose arrays are of objects that act."""
    buffer = io.BytesIO()
    value = gadgets(canary)["an array of objects"]
    if kind == "npz":
        names = ("format", "digest", "heads", "groups", "evaluations", "train", "held_out")
        np.savez(buffer, allow_pickle=True, **dict.fromkeys(names, value))
    else:
        np.save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


# Pickles that no pickler writes: too short, too deep, with huge sizes, for functions that were given nothing
ODD_PICKLES = (
    *(b"", b".", b"\x80\x02.", b"\x80\x02N.", b"\x80\x02(.", b"\x80\x02].", b"\x80\x02NNt."),
    *(b"\x80\x02]\x94h\x05.", b"\x80\x02X\xff\xff\xff\xffabc.", b"\x80\x02B\xff\xff\xff\x7f.", b"\x80\x02\x8a\xff."),
    *(b"\x80\x02]K\x01K\x02s.", b"\x80\x02X\x01\0\0\0\xff.", b"\x80\x02K\x01Q.", b"\x80\x02" + b"(" * 50_000 + b"."),
    b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
    b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n)R.",
    b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    b"\x80\x02ccollections\nOrderedDict\n)RK\x01b.",
    b"\x80\x02ctorch\nTensor\n)\x81.",
    b"\x80\x02ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R.",
)


def bombs(state: dict[str, Any]) -> dict[str, bytes]:
    """Small files that ask for much: packed zeros, sizes that are not there, pickles that no pickler writes."""
    whole = saved({"format": checkpoint.FORMAT, **state})
    zeros = bytes(1 << 28)
    found = {
        "256 MB of packed zeros for weights": changed(whole, "/data/0", zeros, packed=True),
        "256 MB of packed zeros for data.pkl": changed(whole, "/data.pkl", zeros, packed=True),
        "packed weights": changed(whole, "/data/0", bytes(4096), packed=True),
        "weights of which most is missing": changed(whole, "/data/0", b"short"),
        "no weights": changed(whole, "/data/0", None),
        "no version": changed(whole, "/version", None),
        "no data.pkl": changed(whole, "/data.pkl", None),
        "another byte order": changed(whole, "/byteorder", b"none"),
        "an empty zip file": b"PK\x05\x06" + bytes(18),
        "half a zip file": whole[: len(whole) // 2],
        "nothing": b"",
    }
    return found | {f"{odd[:40]!r} for data.pkl": changed(whole, "/data.pkl", odd) for odd in ODD_PICKLES}
