"""Names of tokenizers and models: names in the offline cache, repositories of the hub, and folders."""

from __future__ import annotations

# Names in the offline cache -> repositories of the hub; all others have the same name in both
REPOSITORIES = {name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")}
ALIASES = {repository: name for name, repository in REPOSITORIES.items()}


def canonical(name: str) -> str:
    """Return the name under which a tokenizer or model is stored, which is the same for all of its aliases."""
    return ALIASES.get(name, name)


def repository(name: str) -> str:
    """Return the hub repository that a name stands for."""
    return REPOSITORIES.get(name, name)


def is_folder(name: str) -> bool:
    """True if a name is the path of a folder: it starts with / . ~ or $, or has more parts than owner/name."""
    return name.startswith(("/", ".", "~", "$")) or name.count("/") > 1
