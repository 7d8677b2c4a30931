"""Numbers that keep their spelling in the experiment file, such as `1e-4`, `007` and `0x10`.

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


def keep_spelling(value: Any, text: str) -> Any:
    """Return a number with its spelling if Python spells it differently; any other value as it is."""
    kinds: dict[type, type] = {int: IntLiteral, float: FloatLiteral}
    if type(value) not in kinds or text == repr(value):
        return value
    number = kinds[type(value)](value)
    number.spelling = text
    return number


def text_of(value: Any) -> str:
    """Return a scalar as it is written in YAML."""
    if isinstance(value, bool):
        return str(value).lower()
    return value.spelling if isinstance(value, IntLiteral | FloatLiteral) else str(value)


def number_as_text(value: Any) -> Any:
    """Return a number or a switch as text; any other value as it is."""
    return text_of(value) if isinstance(value, bool | int | float) else value


def whole_number(value: Any) -> Any:
    """Return a float such as 1e5 as a whole number; any other value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, BeforeValidator(number_as_text)]
