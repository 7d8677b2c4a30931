"""Running out of memory: how it is recognised, and how a batch is cut so that it fits. Free of torch."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORDS = (
    *("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory"),
    *("could not create a primitive", "could not execute a primitive"),  # all that oneDNN says of it
)


def is_out_of_memory(error: BaseException) -> bool:
    """Did an allocation fail, on whichever device? The CPU's allocator raises a plain RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


def first_line(error: BaseException) -> str:
    """What to quote of an error in a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def give_back(device: torch.device) -> None:
    """Return what is allocated and not used to the operating system or the GPU's driver, for whoever needs it now."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
    # On a CPU the heap is kept on purpose while all goes well; here it is what others, such as compilers of kernels,
    # cannot have. Only glibc knows this call.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def largest_part(batch_size: int, parts: int) -> int:
    """Windows in the largest of `parts` parts of a batch."""
    return -(-batch_size // parts)


def more_parts(batch_size: int, parts: int) -> int | None:
    """The number of parts whose largest is half as large; None where a part is one window already."""
    size = largest_part(batch_size, parts)
    return None if size == 1 else -(-batch_size // (size // 2))


def peak_memory(device: torch.device) -> int:
    """Bytes: the device's tensors on cuda, else the resident memory of this process at its largest."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
