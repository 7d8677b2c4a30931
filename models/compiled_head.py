"""The output head's loss in C++, where g++ is installed: in float32 for narrow models on processors with AVX-512, in
bfloat16 on processors with AMX.

Torch's matrix products are slow at inner dimensions as small as 48, and each pass over a tile of the logits costs as
much as a product. Here a tile is multiplied, exponentiated and summed in registers or in the nearest cache.
"""

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
from torch.nn import functional as F

from ablatrix.models.cpu_kernels import TiledHeadLoss

SOURCE = Path(__file__).with_suffix(".cpp")
AMX_SOURCE = Path(__file__).with_name("amx_head.cpp")
FLAGS = ("-O3", "-mavx512f", "-funroll-loops", "-fopenmp", "-fPIC")
AMX_FLAGS = (*FLAGS, "-mavx512bw", "-mavx512bf16", "-mamx-tile", "-mamx-bf16")
# wider heads are faster as torch's products; of bfloat16 without AMX the narrow ones only, whose products stay float32
MAX_WIDTH = {torch.float32: 384, torch.bfloat16: 64}
MIN_WORDS = 8192  # smaller vocabularies are not worth the second that compiling takes

_folder: Path | None = None


def use(folder: Path | None) -> None:
    """Use the compiled kernels where they are faster, compiled into `folder` when first needed; None: never."""
    global _folder
    _folder = folder


def find(weight: Tensor, dtype: torch.dtype) -> type[CompiledHeadLoss | AmxHeadLoss] | None:
    """Return what is faster than `TiledHeadLoss` for a head (V, C) and products of this type, if anything is."""
    words, width = weight.shape
    suits = words >= MIN_WORDS and weight.dtype == torch.float32 and weight.is_contiguous() and width % 16 == 0
    if _folder is None or not suits:
        return None
    if dtype == torch.bfloat16:
        library = load(_folder, AMX_SOURCE, AMX_FLAGS)
        if library and library.amx_request():
            return AmxHeadLoss
    return CompiledHeadLoss if width <= MAX_WIDTH.get(dtype, 0) and load(_folder) else None


@functools.cache
def load(folder: Path, source: Path = SOURCE, flags: tuple[str, ...] = FLAGS) -> ctypes.CDLL | None:
    """Return the compiled kernels, kept in `folder`; None if they cannot be used on this processor or without g++.

    Others may write to the folder: a library that is not this user's own is not loaded.
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    name = hashlib.sha256(source.read_bytes() + " ".join(flags).encode()).hexdigest()[:16]
    path = folder / f"head-{name}-{os.getuid()}.so"
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
    """Raises OSError or subprocess.SubprocessError if that is impossible."""
    compiler = shutil.which("g++")
    if not compiler:
        raise FileNotFoundError("g++")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # several runs may compile at the same time
        made, compiled = Path(folder, path.name), Path(folder, "head.o")
        # linked without OpenMP: it is the copy that torch has loaded; with another one each would have its own threads
        for words in ([*flags, "-c", str(source), "-o", str(compiled)], ["-shared", str(compiled), "-o", str(made)]):
            subprocess.run([compiler, *words], check=True, capture_output=True, timeout=120)
        made.chmod(0o700)
        made.replace(path)


class CompiledHeadLoss(TiledHeadLoss):
    """`TiledHeadLoss` with gradients, by the compiled kernels in float32."""

    block = 64  # ROWS of the C++ code
    narrow = 0

    def __init__(self, x: Tensor, weight: Tensor, targets: Tensor, scale: Tensor) -> None:
        super().__init__(x, weight, targets, scale, torch.float32, needs_grad=True)
        library = load(_folder) if _folder else None
        assert library is not None  # `find`
        self.library = library
        self.threads = torch.get_num_threads()

    def _forward(self, xt: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        (c, n), size = xt.shape, self.padded(xt.shape[1])
        blocks = size // self.block
        x = F.pad(xt, (0, size - n)).view(c, blocks, self.block).transpose(0, 1).contiguous()
        shift = torch.zeros(size) if shift is None else F.pad(shift, (0, size - n))
        z, dx = torch.zeros(self.threads, size), torch.zeros(self.threads, blocks, c, self.block)
        self.library.head_forward(
            _at(self.w), len(self.w), c, _at(x), blocks, _at(shift), _at(self.buffer), _at(z), _at(dx), self.threads
        )
        return z.sum(0)[:n], dx.sum(0).transpose(0, 1).reshape(c, size)[:, :n]

    def _add_weight_gradient(self, x: Tensor, first: bool) -> None:
        (n, c), size = x.shape, self.padded(len(x))
        x = F.pad(x, (0, 0, 0, size - n))
        self.library.head_backward(
            _at(self.buffer), len(self.w), c, _at(x), size // self.block, _at(self.dw), first, self.threads
        )


class AmxHeadLoss(TiledHeadLoss):
    """`TiledHeadLoss` with gradients, by the compiled kernels in bfloat16; the weight is rounded where it is used."""

    block = word_block = 32
    narrow = 0
    rounds_weight = False

    def __init__(self, x: Tensor, weight: Tensor, targets: Tensor, scale: Tensor) -> None:
        super().__init__(x, weight, targets, scale, torch.bfloat16, needs_grad=True)
        library = load(_folder, AMX_SOURCE, AMX_FLAGS) if _folder else None
        assert library is not None  # `find`
        self.library = library
        self.threads = torch.get_num_threads()
        self.scratch = torch.empty(self.threads, 256 * (2 * weight.shape[1] + 16), dtype=torch.bfloat16)

    def _forward(self, xt: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        (c, n), size = xt.shape, self.padded(xt.shape[1])
        blocks, steps = size // 32, -(-c // 32)
        x = F.pad(xt, (0, size - n, 0, steps * 32 - c)).bfloat16().view(steps, 16, 2, blocks, 2, 16)
        x = x.permute(3, 0, 4, 1, 5, 2).contiguous()  # pairs of channels
        shift = torch.zeros(size) if shift is None else F.pad(shift, (0, size - n))
        z, dx = torch.zeros(self.threads, size), torch.zeros(self.threads, blocks, c // 16, 2, 16, 16)
        self.library.amx_forward(
            *(_at(self.w), len(self.w), c, _at(x), blocks, _at(shift)),
            *(_at(self.buffer), _at(z), _at(dx), _at(self.scratch), self.threads),
        )
        return z.sum(0)[:n], dx.sum(0).permute(1, 3, 0, 2, 4).reshape(c, size)[:, :n]

    def _add_weight_gradient(self, x: Tensor, first: bool) -> None:
        (n, c), size = x.shape, self.padded(len(x))
        x = F.pad(x, (0, 0, 0, size - n)).bfloat16().view(-1, 16, 2, c // 16, 16)
        x = x.permute(0, 3, 1, 4, 2).contiguous()  # pairs of rows
        self.library.amx_backward(
            _at(self.buffer), len(self.w), c, _at(x), size // 32, _at(self.dw), first, self.threads
        )


def _at(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
