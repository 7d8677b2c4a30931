"""Parse numbers as programs print them: 1,234.5, 3,14, 85 %, tensor(2.5), 5/100, NaN."""

from __future__ import annotations

import re

from ablatrix.trainer.rundir.loss_csv import parse_number

_TENSOR = re.compile(r"(?:tensor|array|np\.float\d+|np\.int\d+)\(\s*\[?([^,\])]+).*", re.DOTALL)
_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_UNDERSCORED = re.compile(r"[-+]?[0-9]+(?:_[0-9]{3})+")
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+(?:[eE][-+]?[0-9]+)?")
_OF_TOTAL = re.compile(r"([0-9][0-9,_]*)\s*/\s*[0-9?][0-9,_]*")


def parse(value: object, whole: bool = False) -> float | None:
    """Return a JSON number, or the number in a string; None for anything else.

    whole: True for counts, where 1,234 means 1234; otherwise a single comma may be a decimal point.
    """
    if isinstance(value, str):
        return _parse_text(value.strip().strip("[](){};:'\"").strip(), whole)
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    except OverflowError:
        return None


def _parse_text(text: str, whole: bool) -> float | None:
    tensor = _TENSOR.fullmatch(text) or _TENSOR.fullmatch(f"{text})")
    text = (tensor[1] if tensor else text).rstrip(",%").strip()
    total = _OF_TOTAL.fullmatch(text) if whole else None
    text = total[1] if total else text
    if _UNDERSCORED.fullmatch(text):
        text = text.replace("_", "")
    elif _THOUSANDS.fullmatch(text) and (whole or text.count(",") > 1 or "." in text):
        text = text.replace(",", "")
    elif _DECIMAL_COMMA.fullmatch(text) and not whole:
        text = text.replace(",", ".")
    return parse_number(text)
