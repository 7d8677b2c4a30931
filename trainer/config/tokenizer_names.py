"""Names of tokenizers: those of the offline cache, their aliases, and folders."""

from __future__ import annotations

ALIASES = {"openai-community/gpt2": "gpt2"}  # the hub's name, and the usual one


def canonical(name: str) -> str:
    """Return the name under which a tokenizer is stored, the same for all its aliases."""
    return ALIASES.get(name, name)


def is_folder(name: str) -> bool:
    """True if a name is the path of a folder: it begins with / . ~ or $, or has more parts than owner/name."""
    return name.startswith(("/", ".", "~", "$")) or name.count("/") > 1
