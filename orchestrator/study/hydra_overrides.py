"""Write values and keys in the grammar of Hydra's overrides, so that Hydra reads back the same value."""

from __future__ import annotations

import json
import re
from typing import Any

# Read as a string: no number, keyword, quote, bracket or interpolation
_PLAIN = re.compile(r"(?!(?:true|false|null|inf|nan)\Z)[A-Za-z_/][A-Za-z0-9_/.@%+-]*", re.IGNORECASE)
_DICT_KEY = re.compile(r"(?!(?:true|false|null|inf|nan)\Z)[A-Za-z_][A-Za-z0-9_-]*", re.IGNORECASE)
_KEY = re.compile(r"(\+\+?|~)?[A-Za-z_][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*(@[A-Za-z0-9_.:-]*)?")
_OVERRIDE = re.compile(r"((?:\+\+?|~)?[A-Za-z_][\w./@:-]*=)(.*)", re.DOTALL)


def value(item: Any) -> str:
    """Return a value with its type in Hydra's grammar."""
    if isinstance(item, str):
        return item if _PLAIN.fullmatch(item) else _quoted(item)
    if isinstance(item, list):
        return f"[{','.join(map(value, item))}]"
    if isinstance(item, dict):
        return "{" + ",".join(f"{key}:{value(inner)}" for key, inner in item.items()) + "}"
    if isinstance(item, float):
        return repr(item)
    return json.dumps(item)


def _quoted(text: str) -> str:
    """Return the text in single quotes; a backslash is special only before a quote or at the end."""
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    return "'" + re.sub(r"\\+\Z", lambda match: match[0] * 2, escaped) + "'"


def override(key: str, item: Any) -> str:
    """Return `key=value`; a null under `~key` removes the key."""
    return key if key.startswith("~") and item is None else f"{key}={value(item)}"


def is_writable(item: Any) -> bool:
    """True unless the value contains a mapping with keys that Hydra's grammar cannot quote."""
    if isinstance(item, list):
        return all(map(is_writable, item))
    if isinstance(item, dict):
        return all(_DICT_KEY.fullmatch(key) and is_writable(inner) for key, inner in item.items())
    return True


def is_key(key: str) -> bool:
    """True if Hydra can parse the key."""
    return _KEY.fullmatch(key) is not None


def split(word: str) -> tuple[str, str] | None:
    """Return `key=` and the rest of an override, None for any other word."""
    match = _OVERRIDE.fullmatch(word)
    return (match[1], match[2]) if match else None


def is_bare(text: str) -> bool:
    """True if no character of the text is special in Hydra's grammar."""
    return not re.search(r"""['"\[\]{}(),$\\]""", text)
