"""Describe what pydantic refuses in the words of the file's author: what is expected, and what was found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LONGEST = 60  # characters of a value that are shown

_EXPECTED = {
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of at most 64 bits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "string_unicode": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "settings (`key: value`)",
    "mapping_type": "settings (`key: value`)",
    "model_type": "settings (`key: value`)",
    "model_attributes_type": "settings (`key: value`)",
    "none_required": "nothing",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_long": "a text of at most {max_length} characters",
    "too_long": "a list with at most {max_length} entries",
    "string_pattern_mismatch": "another value",
}


def show(value: Any) -> str:
    """Return a value as its author would name it: `true`, `nothing`, `a list`, `5`, `'word'`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, Mapping):
        return f"settings ({_shortened(', '.join(map(str, value)))})" if value else "empty settings"
    if isinstance(value, int | float):
        return _shortened(str(value))
    return repr(_shortened(value)) if isinstance(value, str) else _shortened(str(value))


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def describe(errors: Iterable[Any]) -> str:
    """Return what is wrong with one value. errors: pydantic's for it; several where each of some types was tried."""
    deepest = max((len(error["loc"]) for error in errors), default=0)
    listed = [error for error in errors if len(error["loc"]) == deepest] or list(errors)
    told = next((error for error in listed if error["type"] in ("value_error", "assertion_error")), None)
    if told:
        return str(told["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    first = listed[0]
    if first["type"] == "too_short" or first["type"] == "string_too_short":
        least = first["ctx"]["min_length"]
        what = f"must have {least} entries, found {show(first['input'])}"
        return "must not be empty" if least == 1 else what
    expected = " or ".join(dict.fromkeys(_expected(error) for error in listed))
    return f"must be {expected}, found {show(first['input'])}{_hint(listed, first['input'])}"


def _expected(error: Any) -> str:
    if error["type"] in ("literal_error", "enum"):
        return "one of " + re.sub(r" or (?='[^']*'$)", ", ", error["ctx"]["expected"]).replace("'", "")
    words = _EXPECTED.get(error["type"])
    if words is None:  # a type that no model of ours has
        return str(error["msg"]).removeprefix("Input should be ")
    return words.format_map({key: _plain(value) for key, value in error.get("ctx", {}).items()})


def _plain(number: Any) -> Any:
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _hint(errors: Sequence[Any], value: Any) -> str:
    """Return what to write instead, where the value shows what was meant."""
    types = {error["type"] for error in errors}
    text = value.strip() if isinstance(value, str) else ""
    if types & {"bool_type", "bool_parsing"} and text.lower() in ("yes", "y", "on", "no", "n", "off", "true", "false"):
        return f"; write {str(text.lower() in ('yes', 'y', 'on', 'true')).lower()}, without quotes"
    if types & {"int_type", "float_type", "int_parsing", "float_parsing", "int_from_float"}:
        plain = re.sub(r"(?<=\d)[_,' ](?=\d{3}\b)|(?<=\d)_(?=\d)", "", text)
        if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", plain):
            return f"; write {plain}" + (", without quotes" if plain == text else "")
        if isinstance(value, float) and "int_type" in types | {"int_from_float"}:
            return ""
        if isinstance(value, list | tuple):
            return "; to compare several values, give a feature levels: `levels: {a: {...}, b: {...}}`"
    if types & {"dict_type", "model_type", "model_attributes_type", "mapping_type"} and isinstance(value, str):
        key, colon, rest = text.partition(":")
        return (
            f"; write a space after the colon: `{key}: {rest.strip()}`" if colon and re.match(r"[\w.]+$", key) else ""
        )
    return ""
