"""The device of a run, its number of threads, its allocator, and its peak of memory."""

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
from ablatrix.trainer.rundir.files import is_own

if TYPE_CHECKING:
    import torch

OWN_KERNELS = "~/.cache/ablatrix"  # beside a cache that others use


def pick_device(name: str) -> torch.device:
    """Return the device of `trainer.device`; `auto` is cuda, then mps, then cpu. Raises UserError if it is missing."""
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    device = torch.device(name)
    here = {"cuda": cuda, "mps": mps, "cpu": True}[device.type]
    if here and device.type == "cuda" and device.index is not None:
        here = device.index < torch.cuda.device_count()
    if not here:
        raise UserError(f"trainer.device: {name} is not available on this machine; use auto, or ask for a GPU node")
    return device


def describe(device: torch.device) -> str:
    """Return `cuda (NVIDIA H200)` or `cpu (4 threads)`."""
    import torch

    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def product_type(dtype: str, device: torch.device) -> str:
    """Return the type that `trainer.dtype` stands for; auto is bfloat16 on a GPU that has it, and float32 elsewhere."""
    import torch

    if dtype != "auto":
        return dtype
    return (
        "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    )


def autocast(dtype: str, device: torch.device) -> torch.autocast:
    """Return the context in which products are computed in `trainer.dtype`."""
    import torch

    half = product_type(dtype, device) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=half)


def name_hardware(device: torch.device) -> str:
    """Return the model of the GPU, or of the CPU that computes or drives another device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else hardware.processor()


def share_of_machine(device: torch.device, processes: int) -> dict[str, Any]:
    """Return the fields of a `started` event by which the run's hours on its devices are counted.

    gpus: those that this process may use, [] on a CPU; processes of the run; threads of each.
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

    By default glibc maps every large tensor again, and the kernel clears its pages at the first touch: half of the time
    of a small model's step.
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
    """Seed the default generators of the CPU and of this device.

    torch.manual_seed does so for every kind of device, and keeps a traceback for those that are not in use: 0.15 ms.
    """
    import torch

    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)


def tune_products(device: torch.device, kernels: Path | None = None) -> None:
    """Choose how float32 matrices are multiplied; kernels: folder of the compiled kernels for CPUs, None for none.

    Another user's folder is left as it is: the kernels are then kept in OWN_KERNELS.

    cuda: TF32. cpu: torch's setting "medium" sends products to oneDNN, up to twice as fast as MKL on processors that
    are not Intel's; on hardware with units for it, it also rounds to bfloat16. It is used only if a comparison with
    float64 shows that nothing is rounded.
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
        # bfloat16 would be wrong by 4e-3, float32 is by less than 1e-6
        if float((a @ b - exact).abs().max() / exact.abs().max()) > 1e-5:
            torch.set_float32_matmul_precision("highest")
            return


def limit_threads(environ: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Give OpenMP and MKL the cores that this job has, unless OMP_NUM_THREADS says otherwise.

    Must run before torch is imported: the libraries read the variable once. By default they count the whole node, and
    two jobs that both do so are many times slower than one after the other.
    """
    environ.setdefault("OMP_NUM_THREADS", str(allotted_cores(environ)))


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: the device's tensors on cuda, else this process's resident memory.

    On Linux without the pages of files that are resident now: the system shares them, and how many of the libraries'
    pages count depends on whether the process was forked (52 MB) or started by itself (109 MB).
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit - _file_pages()


def _file_pages() -> int:
    """Return the bytes of files that are resident in this process, 0 where that is not known."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"^RssFile:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
