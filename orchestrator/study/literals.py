"""Numbers and booleans that keep their spelling in the experiment file, such as `1e-4`, `007` and `True`.

YAML determines the type of an unquoted word before its field is known. Where a string is expected, `007` and `1.10` are
strings, and a command receives numbers as they are written.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


class IntLiteral(int):
    spelling: str


class FloatLiteral(float):
    spelling: str


class BoolLiteral(int):
    """A boolean spelled `True` or `TRUE`; becomes a plain bool once variables are filled in, see `settle_switches`."""

    spelling: str

    def __str__(self) -> str:
        return self.spelling


def keep_spelling(value: Any, text: str) -> Any:
    """Return a number or boolean that remembers its spelling, if unusual; any other value unchanged."""
    kinds: dict[type, type] = {int: IntLiteral, float: FloatLiteral, bool: BoolLiteral}
    if type(value) not in kinds or text == (str(value).lower() if isinstance(value, bool) else repr(value)):
        return value
    number = kinds[type(value)](value)
    number.spelling = text
    return number


def text_of(value: Any) -> str:
    """Return a scalar as written in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    return value.spelling if isinstance(value, IntLiteral | FloatLiteral) else str(value)


def settle_switches(value: Any, as_text: bool) -> Any:
    """Return the value with each `True` or `TRUE` in it as a plain bool, or as a string."""
    if isinstance(value, dict):
        return {key: settle_switches(inner, as_text) for key, inner in value.items()}
    if isinstance(value, list):
        return [settle_switches(inner, as_text) for inner in value]
    if isinstance(value, BoolLiteral):
        return value.spelling if as_text else bool(value)
    return value


def number_as_text(value: Any) -> Any:
    """Return a number or boolean as a string; any other value unchanged."""
    return text_of(value) if isinstance(value, bool | int | float) else value


def whole_number(value: Any) -> Any:
    """Return a float such as 1e5 as an int; any other value unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, BeforeValidator(number_as_text)]
