"""Values and keys in the grammar of Hydra's overrides: what Hydra reads back is the value itself."""

from __future__ import annotations

import json
import re
from typing import Any

# Read as the text it is: no number, keyword, quote, bracket or interpolation
_PLAIN = re.compile(r"(?!(?:true|false|null|inf|nan)\Z)[A-Za-z_/][A-Za-z0-9_/.@%+-]*", re.IGNORECASE)
_DICT_KEY = re.compile(r"(?!(?:true|false|null|inf|nan)\Z)[A-Za-z_][A-Za-z0-9_-]*", re.IGNORECASE)
_KEY = re.compile(r"(\+\+?|~)?[A-Za-z_][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*(@[A-Za-z0-9_.:-]*)?")
_OVERRIDE = re.compile(r"((?:\+\+?|~)?[A-Za-z_][\w./@:-]*=)(.*)", re.DOTALL)


def value(found: Any) -> str:
    """A value of the experiment file as Hydra reads it back, its type included."""
    if isinstance(found, str):
        return found if _PLAIN.fullmatch(found) else _quoted(found)
    if isinstance(found, list):
        return f"[{','.join(map(value, found))}]"
    if isinstance(found, dict):
        return "{" + ",".join(f"{key}:{value(inner)}" for key, inner in found.items()) + "}"
    if isinstance(found, float):
        return repr(found)
    return json.dumps(found)


def _quoted(text: str) -> str:
    """In single quotes; a backslash is special only before a quote, or before the end."""
    escaped = re.sub(r"(\\*)'", lambda match: match[1] * 2 + r"\'", text)
    return "'" + re.sub(r"\\+\Z", lambda match: match[0] * 2, escaped) + "'"


def override(key: str, found: Any) -> str:
    """`key=value`; a null under `~key` removes the key, whatever its value is."""
    return key if key.startswith("~") and found is None else f"{key}={value(found)}"


def is_writable(found: Any) -> bool:
    """False for a mapping with keys that Hydra's grammar cannot quote."""
    if isinstance(found, list):
        return all(map(is_writable, found))
    if isinstance(found, dict):
        return all(_DICT_KEY.fullmatch(key) and is_writable(inner) for key, inner in found.items())
    return True


def is_key(key: str) -> bool:
    """True for the keys that Hydra can parse."""
    return _KEY.fullmatch(key) is not None


def split(word: str) -> tuple[str, str] | None:
    """`key=` and the rest of an override, None for any other word."""
    match = _OVERRIDE.fullmatch(word)
    return (match[1], match[2]) if match else None


def is_bare(text: str) -> bool:
    """True if no character of the text means something to Hydra's grammar."""
    return not re.search(r"""['"\[\]{}(),$\\]""", text)
