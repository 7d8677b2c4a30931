"""Numbers as programs print them: 1,234.5, 3,14, 85 %, tensor(2.5), 5/100, NaN."""

from __future__ import annotations

import re

from ablatrix.trainer.rundir import loss_csv

_TENSOR = re.compile(r"(?:tensor|array|np\.float\d+|np\.int\d+)\(\s*\[?([^,\])]+).*", re.DOTALL)
_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_UNDERSCORED = re.compile(r"[-+]?[0-9]+(?:_[0-9]{3})+")
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+(?:[eE][-+]?[0-9]+)?")
_OF_TOTAL = re.compile(r"([0-9][0-9,_]*)\s*/\s*[0-9?][0-9,_]*")


def read(told: object, whole: bool = False) -> float | None:
    """A number of JSON's, or the text of one; None for anything else.

    whole: a count, of which 1,234 is more than a thousand; in a measure a single comma may be a decimal one.
    """
    if isinstance(told, str):
        return _of_text(told.strip().strip("[](){};:'\"").strip(), whole)
    return float(told) if isinstance(told, int | float) and not isinstance(told, bool) else None


def _of_text(text: str, whole: bool) -> float | None:
    tensor = _TENSOR.fullmatch(text) or _TENSOR.fullmatch(f"{text})")
    text = (tensor[1] if tensor else text).rstrip(",%").strip()
    total = _OF_TOTAL.fullmatch(text) if whole else None
    text = total[1] if total else text
    value = loss_csv.parse_number(text)
    if value is not None:
        return value
    if _UNDERSCORED.fullmatch(text):
        return float(text.replace("_", ""))
    if _THOUSANDS.fullmatch(text) and (whole or text.count(",") > 1 or "." in text):
        return float(text.replace(",", ""))
    return float(text.replace(",", ".")) if _DECIMAL_COMMA.fullmatch(text) and not whole else None
