"""Numbers and switches that keep their spelling in the experiment file, such as `1e-4`, `007` and `True`.

YAML decides the type of an unquoted word before the field it belongs to is known. Where a text is expected, `007` and
`1.10` are that text, and a command is passed numbers as they are written.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


class IntLiteral(int):
    spelling: str


class FloatLiteral(float):
    spelling: str


class BoolLiteral(int):
    """A switch spelled `True` or `TRUE`; a plain one once variables are filled in, see `settle_switches`."""

    spelling: str

    def __str__(self) -> str:
        return self.spelling


def keep_spelling(value: Any, text: str) -> Any:
    """Return a number or switch with its spelling if it is not the usual one; any other value as it is."""
    kinds: dict[type, type] = {int: IntLiteral, float: FloatLiteral, bool: BoolLiteral}
    if type(value) not in kinds or text == (str(value).lower() if isinstance(value, bool) else repr(value)):
        return value
    number = kinds[type(value)](value)
    number.spelling = text
    return number


def text_of(value: Any) -> str:
    """Return a scalar as it is written in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    return value.spelling if isinstance(value, IntLiteral | FloatLiteral) else str(value)


def settle_switches(value: Any, as_text: bool) -> Any:
    """Return the value with each `True` or `TRUE` in it as a plain switch, or as text."""
    if isinstance(value, dict):
        return {key: settle_switches(inner, as_text) for key, inner in value.items()}
    if isinstance(value, list):
        return [settle_switches(inner, as_text) for inner in value]
    if isinstance(value, BoolLiteral):
        return value.spelling if as_text else bool(value)
    return value


def number_as_text(value: Any) -> Any:
    """Return a number or a switch as text; any other value as it is."""
    return text_of(value) if isinstance(value, bool | int | float) else value


def whole_number(value: Any) -> Any:
    """Return a float such as 1e5 as a whole number; any other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, BeforeValidator(number_as_text)]
