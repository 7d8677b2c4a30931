"""Numbers as text: signs, intervals, p values, quantities with metric prefixes, durations, counts."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

from ablatrix.trainer.rundir.console import visible

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.statistics import Effect, Reach

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EM DASH}"
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
LEAST_OF_PART, WITH_BEGINNING = 9, 16  # in characters, for shortened names
_JOINED = re.compile(r"( × |\+)")  # between the parts of a pair or a combination
USUAL_DECIMALS, LEAST_OF_NLL, MOST_DECIMALS = 4, 3, 9
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def signed(value: float | None, digits: int) -> str:
    """Return `+0.0421`, with a typographic minus sign; without a sign if it reads 0; an em dash for None."""
    if value is None:
        return DASH
    text = f"{value:+.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text[1:]


def plain(value: float | None, digits: int) -> str:
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def decimals_for(uncertainty: float, least: int = 0, size: float = 1.0) -> int:
    """Return the number of decimals that show two digits of a positive number, at least `least`.

    size: of the values; at most MOST_DECIMALS digits after their first one are shown.
    """
    return min(max(1 - _exponent(uncertainty), least), MOST_DECIMALS + max(0, -_exponent(size)))


def usual_decimals(size: float) -> int:
    """Return the number of decimals of values of this size, a positive number, with no known uncertainty."""
    return max(USUAL_DECIMALS, USUAL_DECIMALS - 1 - _exponent(size))


def _exponent(value: float) -> int:
    return math.floor(math.log10(value))


def span_text(low: float | None, high: float | None, digits: int, sign: bool = True) -> str:
    """Return `−0.190 to −0.101`; an em dash if there is no interval. sign: write + too, as for effects."""
    text = signed if sign else plain
    if low is None or high is None:
        return DASH
    return f"{text(low, bound_decimals(low, digits))} to {text(high, bound_decimals(high, digits))}"


def bound_decimals(bound: float, digits: int) -> int:
    """Return the number of decimals of a bound: more than `digits` if it would read as 0, hiding its sign."""
    if bound == 0 or float(f"{bound:.{digits}f}") != 0:
        return digits
    needed = -_exponent(abs(bound))
    return needed if needed <= max(MOST_DECIMALS, digits + 2) else digits


def p_name(comparisons: int) -> str:
    """Return the heading of p values that are corrected for this number of comparisons."""
    return "p (corrected)" if comparisons > 1 else "p"


def level_text(alpha: float) -> str:
    """Return the confidence level of an interval with this error rate: `95%`, `98.5%`."""
    return f"{100 * (1 - alpha):.4g}%"


def p_text(p: float | None) -> str:
    """Return `p = 0.012`; never `p = 0.000`."""
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_equals(p: float | None) -> str:
    """Return `= 0.012` or `< 0.001`, to follow the letter p."""
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def with_margin(effect: Effect | None, digits: int) -> str:
    """Return `−0.0421 ± 0.0110`: the effect and half the width of its pointwise interval."""
    if effect is None:
        return DASH
    half = effect.half_width
    return signed(effect.mean, digits) + (f" ± {half:.{digits}f}" if half is not None else "")


def quantity(value: float | None, unit: str = "") -> str:
    """Return the value with three digits and a metric prefix: 1234567 -> 1.23 M."""
    if value is None or not math.isfinite(value):
        return DASH
    for factor, prefix in PREFIXES:
        if abs(value) >= factor:
            value, unit = value / factor, f"{prefix}{unit}"
            break
    digits = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{min(digits, 3)}f} {unit}".strip()


def duration(seconds: float | None) -> str:
    """Return a duration in words: 95.2 -> 1 min 35 s."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def percent(ratio: float | None) -> str:
    return DASH if ratio is None else f"{(ratio - 1) * 100:+.1f}%".replace("-", MINUS)


def reach_text(reach: Reach | None, unit: str) -> str:
    """Return the cost; 'over ...' if a run never reached the target."""
    if reach is None or reach.mean is None:
        return DASH
    value = duration(reach.mean) if unit == "s" else quantity(reach.mean)
    if not reach.censored:
        return f"at most {value}" if reach.at_most else value
    total = len(reach.reached) + len(reach.limits)
    return f"over {value}" + ("" if not reach.reached else f" ({len(reach.reached)} of {total} reached it)")


def times(factor: float | None) -> str:
    """Return a factor: 1.149 -> 1.15×."""
    return DASH if factor is None else f"{factor:.2f}×"


def factor_text(reach: Reach | None) -> str:
    """Return the speed-up; 'under ...' if a run never reached the target."""
    if reach is None or reach.factor is None:
        return DASH
    return ("under " if reach.censored else "") + times(reach.factor)


def short(name: str, most: int) -> str:
    """Return a name with its middle elided if it is long: names built from parts differ at both ends."""
    name = visible(name)
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}{ELLIPSIS}{name[-(most - 1 - head) :]}"


def shorten(names: Iterable[str], most: int) -> dict[str, str]:
    """Shorten names to at most `most` characters, no two of them alike.

    Names that `short` makes identical show where they first differ; if that does not tell them apart, they stay whole.
    If a long name is a combination (`a+b`, `a × b`), its parts are shortened individually, in the same way in all
    combinations, provided that the result is short enough.
    """
    split = {name: _JOINED.split(visible(name)) for name in names}
    combined = {name: parts for name, parts in split.items() if len(parts) > 1}
    long = [len(parts) // 2 + 1 for name, parts in combined.items() if len(name) > most]
    if not long:
        return _shorten(split, most)
    each = max(LEAST_OF_PART, most // max(long) - 2)
    shown = _shorten(dict.fromkeys(part for parts in combined.values() for part in parts[::2]), each)
    texts = _shorten(split, most)
    texts |= {name: "".join(shown.get(part, part) for part in parts) for name, parts in combined.items()}
    texts |= _shorten([name for name, text in texts.items() if len(text) > most], most)
    return _shorten(split, most) if _find_alike(texts) else texts


def _shorten(names: Iterable[str], most: int) -> dict[str, str]:
    texts = {name: short(name, most) for name in names}
    for group in _find_alike(texts):
        texts |= _show_difference(group, most)
    for group in _find_alike(texts):
        texts |= {name: visible(name) for name in group}
    return texts


def _find_alike(texts: Mapping[str, str]) -> list[list[str]]:
    """Return the groups of names that have the same text."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, text in texts.items():
        groups[text].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _show_difference(names: Sequence[str], most: int) -> dict[str, str]:
    """Shorten names to their beginning, if there is room, and the part around the first character where they differ."""
    shown = {name: visible(name) for name in names}
    differ = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*shown.values(), strict=False)))
    head = most // 3 if most >= WITH_BEGINNING else 0
    part = most - head - 2
    begin = max(head, differ - (part // 3 if head else part - 2))
    ends = {name: ELLIPSIS if begin + part < len(text) else "" for name, text in shown.items()}
    return {name: f"{text[:head]}{ELLIPSIS}{text[begin : begin + part]}{ends[name]}" for name, text in shown.items()}


def join_names(names: Sequence[str], most: int = 8) -> str:
    """Return `a, b and c`; a list longer than `most` ends in the number of remaining names."""
    shown = list(names[:most]) + ([f"{len(names) - most} more"] if len(names) > most else [])
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
