"""Names of tokenizers that mean the same one."""

from __future__ import annotations

ALIASES = {"openai-community/gpt2": "gpt2"}  # the hub's name today, and the one everybody writes


def canonical(name: str) -> str:
    """The name under which a tokenizer is kept: one for all the names that mean the same."""
    return ALIASES.get(name, name)
