"""Aliases of tokenizer names."""

from __future__ import annotations

ALIASES = {"openai-community/gpt2": "gpt2"}  # the hub's name, and the usual one


def canonical(name: str) -> str:
    """Return the name under which a tokenizer is stored, the same for all its aliases."""
    return ALIASES.get(name, name)
