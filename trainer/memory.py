"""What running out of memory looks like."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Did an allocation fail, on whichever device? The CPU's allocator raises a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in WORDS)


WORDS = ("out of memory", "can't allocate memory", "not enough memory", "Cannot allocate memory")
