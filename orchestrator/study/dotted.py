"""Convert between nested settings, {"a": {"b": 1}}, and dotted keys, {"a.b": 1}."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (keys, value) of every value at any depth; an empty mapping is a value."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a": {"b": 1}} as {"a.b": 1}."""
    return {".".join(path): value for path, value in leaves(tree)}


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"a.b": 1} as {"a": {"b": 1}}; a key that is both a value and a section keeps its dots."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        place: Any = tree
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else None
        if isinstance(place, dict) and not isinstance(place.get(name), dict):
            place[name] = value
        else:
            tree[key] = value
    return tree


def override(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Return the flat settings of `low` overridden by those of `high`.

    `opt: null` removes the whole section `opt.*`, a section replaces a `null` or `{}` in `low`, and an empty section
    changes nothing.
    """
    removed = tuple(f"{key}." for key, value in high.items() if value is None)
    kept = {key: value for key, value in low.items() if not key.startswith(removed)} if removed else dict(low)
    empty = [key for key, value in high.items() if value == {}]
    below = {parent for key in kept for parent in parents(key)} if empty else set()
    blank = [key for key, value in kept.items() if value in (None, {})]
    sections = {parent for key in high for parent in parents(key)} if blank else set()
    for key in blank:
        if key in sections:
            del kept[key]
    return kept | {key: value for key, value in high.items() if key not in empty or not (key in below or key in low)}


def parents(key: str) -> list[str]:
    """Return the sections of a dotted key: a and a.b for a.b.c."""
    parts = key.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]
