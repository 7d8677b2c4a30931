"""The device of a run: selection, threads, memory allocator, and peak memory."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.trainer.rundir import hardware
from ablatrix.trainer.rundir.cpus import allotted_cores
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.owners import is_own

if TYPE_CHECKING:
    import torch

OWN_KERNELS = "~/.cache/ablatrix"  # used if the cache belongs to another user


def pick_device(name: str) -> torch.device:
    """Return the device for `trainer.device`; `auto` tries cuda, mps, then cpu. Raises UserError if it is missing."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    here = {"cuda": cuda, "mps": mps, "cpu": True}[device.type]
    if here and device.type == "cuda" and device.index is not None:
        here = device.index < torch.cuda.device_count()
    if not here:
        raise UserError(f"trainer.device: {name} is not available on this machine; use auto, or request a GPU node")
    return device


def describe(device: torch.device) -> str:
    """Return a description such as `cuda (NVIDIA H200)` or `cpu (4 threads)`."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def product_type(dtype: str, device: torch.device) -> str:
    """Return the dtype for `trainer.dtype`; auto means bfloat16 on a GPU that supports it, and float32 elsewhere."""
    import torch

    if dtype != "auto":
        return dtype
    return (
        "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    )


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """Return a context in which matrix products are computed in `trainer.dtype`."""
    import torch

    half = product_type(dtype, device) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


def name_hardware(device: torch.device) -> str:
    """Return the model name of the GPU, or else of the CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else hardware.processor()


def share_of_machine(device: torch.device, processes: int) -> dict[str, Any]:
    """Return the fields of a `started` event from which the run's device hours are computed.

    gpus: GPUs that this process may use, [] on a CPU; processes: number in the run; threads: number per process.
    """
    import torch

    gpus = hardware.visible_gpus() if device.type == "cuda" else []
    return {"gpus": gpus, "processes": processes, "threads": torch.get_num_threads()}


def prepare() -> None:
    """Set up this process for training, before torch and its libraries are imported."""
    limit_threads()
    keep_memory()


def keep_memory() -> None:
    """Make glibc keep freed memory instead of returning it to the kernel.

    By default glibc calls mmap for every large tensor, and the kernel clears its pages on first touch: half the time of
    a small model's step.
    """
    import ctypes

    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 64 << 20)


def seed_generators(value: int, device: torch.device) -> None:
    """Seed the default generators of the CPU and this device.

    torch.manual_seed seeds every kind of device, and records a traceback for unused ones, which takes 0.15 ms.
    """
    import torch

    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)


def tune_products(device: torch.device, kernels: Path | None = None) -> None:
    """Choose how float32 matrices are multiplied. kernels: folder for compiled CPU kernels, None to use none.

    If the folder belongs to another user, the kernels are kept in OWN_KERNELS instead.

    cuda: TF32. cpu: torch's setting "medium" sends products to oneDNN, which is up to twice as fast as MKL on non-Intel
    processors; on hardware with bfloat16 units it also rounds to bfloat16. It is used only if a comparison with float64
    shows that nothing is rounded.
    """
    import torch

    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if device.type != "cpu":
        return
    if kernels is not None:
        from ablatrix.models import native

        native.use(kernels if is_own(kernels) else Path(os.path.expanduser(OWN_KERNELS)))  # noqa: PTH111 - never raises
    torch.set_float32_matmul_precision("medium")
    generator = torch.Generator().manual_seed(0)
    for shape in ((256, 256), (512, 48)):
        a = torch.randn(shape, generator=generator)
        b = torch.randn(shape[::-1], generator=generator)
        exact = a.double() @ b.double()
        # the error would be 4e-3 in bfloat16, and is less than 1e-6 in float32
        if float((a @ b - exact).abs().max() / exact.abs().max()) > 1e-5:
            torch.set_float32_matmul_precision("highest")
            return


def limit_threads(environ: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Limit OpenMP and MKL to the cores of this job, unless OMP_NUM_THREADS is set.

    Must be called before torch is imported, because the libraries read the variable once. By default they use the whole
    node, and two jobs that both do so are many times slower than if run one after the other.
    """
    environ.setdefault("OMP_NUM_THREADS", str(allotted_cores(environ)))


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: tensors on the device for cuda, else this process's resident memory.

    On Linux, resident file pages are subtracted: the system shares them, and how many of the libraries' pages count
    depends on whether the process was forked (52 MB) or started by itself (109 MB).
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - _file_pages()


def _file_pages() -> int:
    """Return the size of resident file pages of this process in bytes, 0 if unknown."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^RssFile:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
