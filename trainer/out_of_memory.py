"""Out of memory: recognize the error, and split a batch so that it fits. Torch-free."""

from __future__ import annotations

import ctypes
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORDS = (
    *("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory"),
    *("could not create a primitive", "could not execute a primitive"),  # oneDNN's only messages
)


def is_out_of_memory(error: BaseException) -> bool:
    """True if an allocation failed on any device; the CPU allocator raises a plain RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, shortened for quoting in a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def give_back(device: torch.device) -> None:
    """Return unused memory to the operating system and the GPU driver."""
    gc.collect()
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
    # device.keep_memory keeps the heap, but other libraries, such as kernel compilers, may need the memory. glibc only
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def largest_part(batch_size: int, parts: int) -> int:
    """Return the number of windows in the largest of `parts` parts of a batch."""
    return -(-batch_size // parts)


def more_parts(batch_size: int, parts: int) -> int | None:
    """Return the number of parts that halves the largest part, None if a part is already a single window."""
    size = largest_part(batch_size, parts)
    return None if size == 1 else -(-batch_size // (size // 2))
