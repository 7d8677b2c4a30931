"""Secrets in experiment files and on the command line: refused, because every run's folder would keep them.

A message says where and under which key, never the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ablatrix.orchestrator.study import secrets
from ablatrix.orchestrator.study.yaml_tree import KeyPath, Tree
from ablatrix.trainer.rundir.errors import ConfigError, UserError

ESCAPE = "not_secret"  # key of a file: names of settings that only look like secrets
CONSEQUENCE = "it would be kept in every run's folder"
ADVICE = "set it as a variable of your shell and name that under `export:`, as in `export: [WANDB_API_KEY]`"
_ENVIRONMENT = re.compile(r"\$\{\s*env:\s*([^,{}\s]+)")


def refuse(tree: Tree, accepted: Iterable[KeyPath] = ()) -> None:
    """Look through a whole file as it is written, comments apart. Raises ConfigError with every secret in it.

    accepted: places that are not looked at.
    """
    known = set(accepted)
    found = [
        f"{tree.position(path)}: {'.'.join(path)}: {why}; {CONSEQUENCE}: {ADVICE}{escape}"
        for path, why, escape in _found(tree.data, (), _names(tree.data))
        if path not in known
    ]
    if found:
        raise ConfigError(list(dict.fromkeys(found)))


def refuse_filled(data: dict[str, Any], tree: Tree) -> None:
    """The same for what `${...}` has become; what was written so has been judged. Raises ConfigError."""
    refuse(Tree(data, tree.where), [path for path, _, _ in _found(tree.data, (), ())])


def refuse_set(key: str, value: Any) -> None:
    """The same for `key=value` of the command line. Raises UserError."""
    for _, why, _ in _found({key: value}, (), ()):
        shown = "..." if secrets.form(key) else key
        raise UserError(f"--set {shown}: {why}; {CONSEQUENCE}: {ADVICE}")


def _names(data: dict[str, Any]) -> Sequence[str]:
    names = data.get(ESCAPE)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _found(value: Any, path: KeyPath, harmless: Sequence[str]) -> Iterator[tuple[KeyPath, str, str]]:
    """(path, what it looks like, what to do if it is none) of each secret in a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if secrets.form(str(key)):
                yield path, f"a key below looks like {secrets.form(str(key))}", ""
            else:
                yield from _found(inner, (*path, str(key)), harmless)
    elif isinstance(value, list):
        for inner in value:  # has the key of the list
            yield from _found(inner, path, harmless)
        yield from _judged(path, _reason_of_words(value), harmless)
    else:
        yield from _judged(path, _reason(".".join(path), value), harmless)


def _judged(path: KeyPath, why: str, harmless: Sequence[str]) -> Iterator[tuple[KeyPath, str, str]]:
    exempt = not path or path[0] in (ESCAPE, "export")
    if why and not exempt and not f".{'.'.join(path)}".endswith(tuple(f".{name}" for name in harmless)):
        yield path, why, f"; if it is none: `{ESCAPE}: [{path[-1]}]`"


def _reason_of_words(words: Sequence[Any]) -> str:
    """What gives neighbours in a list away, as a command's words are: --api-key, then the key."""
    named = secrets.given(words)
    kind = secrets.form(" ".join(word for word in words if isinstance(word, str)))
    return f"it gives a secret to {named}" if named else f"it looks like {kind}" if kind else ""


def _reason(key: str, value: Any) -> str:
    """What gives a value away, '' where nothing does."""
    text = value if isinstance(value, str) else ""
    read = next((name for name in _ENVIRONMENT.findall(text) if secrets.name(name)), "")
    if read:
        return f"${{env:{read}}} would copy a secret out of your environment"
    if secrets.name(key) and secrets.literal(key, value):
        return "its name says that it is a secret"
    kind = secrets.form(text, key)
    if kind:
        return f"it looks like {kind}"
    named = secrets.assigned(text)
    return f"it gives a secret to {named}" if named else ""
