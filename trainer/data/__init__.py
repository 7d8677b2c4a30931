"""From a data file to batches: reading documents, encoding them, and the token cache that all jobs share.

`open_tokens` is where a run begins: the tokens of a corpus by line, cached or made as they are drawn.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `open_tokens` on first use: most modules of this package are used without it, and without numpy."""
    if name == "open_tokens":
        from ablatrix.trainer.data.tokens import open_tokens

        return open_tokens
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
