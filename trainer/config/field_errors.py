"""Describe pydantic's errors to users: what was expected, and what was found."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

LONGEST = 60  # characters of a value to show
Path = tuple[str, ...]

_SECTION = "a mapping (`key: value`)"
_EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number{limits}",
    "int_parsing": "a whole number{limits}",
    "int_parsing_size": "a whole number of at most 64 bits",
    "int_from_float": "a whole number{limits}",
    "float_type": "a number{limits}",
    "float_parsing": "a number{limits}",
    "finite_number": "a finite number{limits}",
    "string_type": "a string",
    "string_too_long": "a string of at most {max_length} characters",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": _SECTION,
    "model_type": _SECTION,
    "model_attributes_type": _SECTION,
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_long": "a list of {max_length}",
    "too_short": "a list of {min_length}",
}
_NUMBERS = {"int_type", "float_type", "int_parsing", "float_parsing", "int_from_float"}
_SWITCHES = {**dict.fromkeys(("yes", "y", "on"), "true"), **dict.fromkeys(("no", "n", "off"), "false")}
_TYPES = ("str", "int", "float", "bool", "dict", "list", "tuple", "none", "nullable")
_LIMITS = (("ge", "{} or more"), ("gt", "more than {}"), ("le", "{} or less"), ("lt", "less than {}"))


def show(value: Any) -> str:
    """Return a value as a user would describe it: `true`, `nothing`, `a list of 2`, `5`, `'word'`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, Mapping):
        return f"a mapping ({_shortened(', '.join(map(str, value)))})" if value else "an empty mapping"
    return repr(_shortened(value)) if isinstance(value, str) else _shortened(str(value))


def spell(value: Any) -> str:
    """Return a value as written in YAML: `true`, `null`, `[0.9, 0.95]`, a string without quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def by_place(errors: Iterable[Any], data: Any) -> list[tuple[Path, list[Any]]]:
    """Return (keys, errors) for each invalid value.

    If a value may have several types, pydantic reports an error for each: only the deepest errors are kept.
    """
    attempts: dict[Path, list[tuple[Path, Any]]] = {}
    for error in errors:
        path, alternative = _place(error, data)
        attempts.setdefault(path if alternative is None else alternative, []).append((path, error))
    found: dict[Path, list[Any]] = {}
    for tried in attempts.values():
        furthest = max(len(path) for path, _ in tried)
        for path, error in tried:
            if len(path) == furthest:
                found.setdefault(path, []).append(error)
    return list(found.items())


def _place(error: Any, data: Any) -> tuple[Path, Path | None]:
    """Return the keys of the invalid value, and the keys of the enclosing value with several types, if any."""
    path: list[str] = []
    alternative: Path | None = None
    value, location = data, error["loc"]
    for number, part in enumerate(location):
        last = number == len(location) - 1
        entry = isinstance(value, list | tuple) and isinstance(part, int) and part < len(value)
        if entry or (isinstance(value, Mapping) and part in value):
            value = value[part]
        elif not (last and isinstance(value, Mapping) and _is_key(part, error["type"])):
            if part != "[key]" and alternative is None:
                alternative = tuple(path)
            continue
        path.append(str(part))
    return tuple(path), alternative


def _is_key(part: Any, kind: str) -> bool:
    """True for a missing or unknown key of a mapping; otherwise `part` is the name of one of several types."""
    return kind in ("missing", "extra_forbidden") or (str(part).isidentifier() and part not in _TYPES)


def split_entry(path: Path) -> tuple[Path, str]:
    """Return the key of a value, and `entry 2: ` if it is in a list; keys of our mappings are never all digits."""
    place = path
    while place and place[-1].isdigit():
        place = place[:-1]
    return place, "".join(f"entry {int(number) + 1}: " for number in path[len(place) :])


def describe(errors: Sequence[Any], field: FieldInfo | None = None) -> str:
    """Return what was expected and what was found. errors: pydantic's errors for one value; field: has its limits."""
    ours = next((error for error in errors if error["type"] == "value_error"), None)
    if ours:
        return _with_value(str(ours["msg"]).removeprefix("Value error, "), ours["input"])
    value, types = errors[0]["input"], {error["type"] for error in errors}
    if types & {"too_short", "string_too_short"} and errors[0]["ctx"]["min_length"] == 1:
        return "must not be empty"
    if types == {"missing"}:
        return f"too few entries: {show(value)}"
    expected = " or ".join(dict.fromkeys(_expected(error, _limits(field)) for error in errors))
    return f"must be {expected}, found {show(value)}{_hint(errors, value) or _without_value(value, field)}"


def _with_value(message: str, value: Any) -> str:
    named = not isinstance(value, str | int | float) or repr(value) in message or str(value) in message
    return message if named else f"{message} (found {show(value)})"


def _expected(error: Any, limits: str) -> str:
    context = error.get("ctx", {})
    if error["type"] == "literal_error":
        return "one of " + re.sub(r" or (?='[^']*'$)", ", ", context["expected"]).replace("'", "")
    words = _EXPECTED.get(error["type"])
    if words is None:  # a type that none of our models uses
        return str(error["msg"]).removeprefix("Input should be ")
    return words.format(limits=limits, **{key: _plain(value) for key, value in context.items()})


def _plain(number: Any) -> Any:
    return int(number) if isinstance(number, float) and number.is_integer() else number


def model_at(model: type[BaseModel], path: Path) -> type[BaseModel] | None:
    """Return the nested model at these keys of a model."""
    for key in path:
        field = model.model_fields.get(key)
        parts = (field.annotation, *get_args(field.annotation)) if field else ()
        models = [part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)]
        if not models:
            return None
        model = models[0]
    return model


def field_at(model: type[BaseModel], path: Path) -> FieldInfo | None:
    """Return the field at these keys of a model, which may be in a nested model."""
    inner = model_at(model, path[:-1])
    return inner.model_fields.get(path[-1]) if inner and path else None


def _limits(field: FieldInfo | None) -> str:
    """Return the limits of a number, as in ` (1 or more)`."""
    known: dict[str, Any] = {}
    if field and any(get_origin(kind) is list for kind in get_args(field.annotation)):
        return ""  # a number or a list of numbers, each with its own limits
    for part in _metadata(field.annotation, field.metadata) if field else ():
        known |= {name: getattr(part, name) for name, _ in _LIMITS if getattr(part, name, None) is not None}
    words = [words.format(_plain(known[name])) for name, words in _LIMITS if name in known and abs(known[name]) < 2**60]
    return f" ({', '.join(words)})" if words else ""


def _metadata(annotation: Any, own: Iterable[Any]) -> Iterator[Any]:
    for part in own:
        yield from _metadata(None, part.metadata) if isinstance(part, FieldInfo) else (part,)
    for inner in get_args(annotation):
        yield from _metadata(inner, getattr(inner, "__metadata__", ()))


def _hint(errors: Sequence[Any], value: Any) -> str:
    """Return what to write instead, if the value shows what was meant."""
    types = {error["type"] for error in errors}
    text = value.strip() if isinstance(value, str) else ""
    if types & {"bool_type", "bool_parsing"} and text.lower() in (*_SWITCHES, "true", "false"):
        return f"; write {_SWITCHES.get(text.lower(), text.lower())}{_unquoted(text.lower() not in _SWITCHES)}"
    if types & _NUMBERS:
        if isinstance(value, list | tuple):
            return "; to compare values, make them levels of a feature: `levels: {a: {...}, b: {...}}`"
        if re.fullmatch(r"\$[A-Za-z_]\w*", text):
            return f"; write ${{env:{text[1:]}}}"
        return _number_meant(text, whole=not types & {"float_type", "float_parsing"})
    if types & {"dict_type", "model_type", "model_attributes_type"}:
        key, colon, rest = text.partition(":")
        spaced = f"; write a space after the colon: `{key}: {rest}`"
        return spaced if colon and rest[:1].strip() and re.fullmatch(r"[A-Za-z][\w.-]*", key) else ""
    if "literal_error" in types:
        near = difflib.get_close_matches(text, re.findall("'([^']*)'", errors[0]["ctx"]["expected"]), 1)
        return f" (did you mean {near[0]}?)" if near else ""
    return ""


def _without_value(value: Any, field: FieldInfo | None) -> str:
    """Return what to write in place of an empty value."""
    if value is not None or field is None:
        return ""
    words = re.findall(r"\w+", field.description or "")
    return "; write none, or leave the key out" if "none" in words else "; give a value, or leave the key out"


def _number_meant(text: str, whole: bool) -> str:
    plain = re.sub(r"(?<=\d)[_,' ](?=\d{3}\b)|(?<=\d)_(?=\d)", "", text)
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", plain):
        return ""
    if whole and not float(plain).is_integer():
        return ""
    shown = str(int(float(plain))) if whole and not plain.isdigit() else plain
    return f"; write {shown}{_unquoted(shown == text)}"


def _unquoted(same: bool) -> str:
    return ", without quotes" if same else ""


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
