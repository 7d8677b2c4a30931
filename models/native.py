"""C++ kernels for processors with AVX-512 or AVX2, compiled with g++ when first needed."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
FLAGS = ("-std=gnu++17", "-O3", "-fopenmp", "-fPIC")
VECTORS = {  # by torch's names of the processor's vectors; unrolled loops are slower with AVX2
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-funroll-loops"),
    "AVX2": ("-mavx2", "-mfma"),
}

_folder: Path | None = None


def use(folder: Path | None) -> None:
    """Use the kernels where they are faster, compiling them into `folder` when first needed; None disables them."""
    global _folder
    _folder = folder


def vectors() -> str:
    """Return torch's name for the vectors of this processor; a key of VECTORS if the kernels can be compiled for it."""
    return torch.backends.cpu.get_cpu_capability()


def load(name: str, *flags: str) -> ctypes.CDLL | None:
    """Return the kernels of `name`.cpp; None if they cannot be used (no folder, no AVX2 or no g++).

    Others may be able to write to the folder: a library that this user does not own is not loaded.
    """
    if _folder is None or vectors() not in VECTORS:
        return None
    return _load(_folder, name, (*FLAGS, *VECTORS[vectors()], *flags))


@functools.cache
def _load(folder: Path, name: str, flags: tuple[str, ...]) -> ctypes.CDLL | None:
    source = HERE / f"{name}.cpp"
    text = b"".join(path.read_bytes() for path in (source, *sorted(HERE.glob("*.h")))) + " ".join(flags).encode()
    path = folder / f"{name}-{hashlib.sha256(text).hexdigest()[:16]}-{os.getuid()}.so"
    try:
        if not path.exists():
            _compile(source, flags, path)
        status = path.stat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        pass
    return None


def _compile(source: Path, flags: tuple[str, ...], path: Path) -> None:
    """Compile a source file. Raises OSError or subprocess.SubprocessError if that fails."""
    compiler = shutil.which("g++")
    if not compiler:
        raise FileNotFoundError("g++")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # several runs may compile at the same time
        made, compiled = Path(folder, path.name), Path(folder, "kernels.o")
        # not linked with OpenMP, to use the copy that torch has loaded; a second copy would start threads of its own
        for words in ([*flags, "-c", str(source), "-o", str(compiled)], ["-shared", str(compiled), "-o", str(made)]):
            subprocess.run([compiler, *words], check=True, capture_output=True, timeout=120)
        made.chmod(0o700)
        made.replace(path)


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Return the address of a contiguous tensor's data."""
    return ctypes.c_void_p(tensor.data_ptr())
