"""Flags of a command: how the settings of a run are written on its command line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ablatrix.orchestrator.study import hydra_overrides
from ablatrix.orchestrator.study.literals import FloatLiteral, IntLiteral

Style = Literal["--a.b=c", "--a_b=c", "--b c", "--key=value", "a.b=c", "config-file", "in-process"]
WITHOUT_FLAGS = ("config-file", "in-process")
HYDRA = "a.b=c"


class Flags(BaseModel):
    """How the settings of a run are written as flags."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    style: Style = "--a.b=c"
    booleans: Literal["value", "switch", "no-prefix"] = Field(
        "value",
        description="value: --x=True; switch: --x or nothing (store_true); no-prefix: --x or --no-x; null: omitted",
    )
    lists: Literal["value", "words", "repeat"] | None = Field(
        None,
        description="value: --x=[1, 2]; words: --x 1 2 (nargs); repeat: --x=1 --x=2; default: by style",
    )

    @property
    def takes_words(self) -> bool:
        """True if a list is written as separate words."""
        return self.lists == "words" or (self.lists is None and self.style == "--b c")

    def spell_with(self, **changes: str) -> str:
        """Return these flags with some keys changed, as YAML to copy; `style` is always included."""
        known = {"style": self.style, **self.model_dump(exclude_defaults=True), **changes}
        return f"{{{', '.join(f'{key}: {value}' for key, value in known.items())}}}"

    @model_validator(mode="after")
    def _has_flags(self) -> Flags:
        for name, value, default in (("booleans", self.booleans, "value"), ("lists", self.lists, None)):
            if value != default and not self.style.startswith("--"):
                raise ValueError(f"`{name}: {value}` has no effect with `style: {self.style}`")
        return self


def flag_words(settings: Mapping[str, Any], flags: Flags) -> list[str]:
    """Return the settings as words of the command line."""
    return [word for key, value in settings.items() for word in _flag(key, value, flags)]


def _flag(key: str, value: Any, flags: Flags) -> list[str]:
    if flags.style in WITHOUT_FLAGS:
        return []
    if flags.style == HYDRA:
        return [hydra_overrides.override(key, value)]
    name = flag_name(key, flags.style)
    if flags.booleans != "value" and (value is None or isinstance(value, bool)):
        return _switch(name, value, flags.booleans)
    if isinstance(value, list) and flags.lists == "repeat":
        return [word for item in value for word in _option(name, item, flags.style)]
    if isinstance(value, list) and flags.takes_words:
        return [name, *map(_list_word, value)]
    return _option(name, value, flags.style)


def flag_name(key: str, style: str) -> str:
    """Return the flag of a key, such as `--lr`; the key itself for Hydra."""
    last = key.rpartition(".")[2]
    names = {"--a.b=c": f"--{key}", "--a_b=c": f"--{key.replace('.', '_')}", HYDRA: key}
    return names.get(style, f"--{last}")


def _option(name: str, value: Any, style: str) -> list[str]:
    """Return `--b c` as two words, unless the value would be taken for another flag."""
    word = argument_text(value, style)
    return [name, word] if style == "--b c" and not word.startswith("-") else [f"{name}={word}"]


def _switch(name: str, value: bool | None, booleans: str) -> list[str]:
    """Return a bare flag for true; `--no-...` or nothing for false; nothing for null."""
    if value:
        return [name]
    return [f"--no-{name.removeprefix('--')}"] if value is False and booleans == "no-prefix" else []


def _list_word(value: Any) -> str:
    """Return an item of a list; argparse recognizes negative numbers only without an exponent."""
    word = argument_text(value, "")
    return f"{Decimal(word):f}" if isinstance(value, float) and math.isfinite(value) and value < 0 else word


def argument_text(value: Any, style: str) -> str:
    """Return a value as an argument string: numbers as written, Python's True and None; or in Hydra's grammar."""
    if isinstance(value, str):
        return value
    if style == HYDRA:
        return hydra_overrides.value(value)
    return value.spelling if isinstance(value, IntLiteral | FloatLiteral) else repr(value)


def flag_problem(key: str, value: Any, flags: Flags) -> str:
    """Return why a setting cannot be written as a flag in this style; '' if it can."""
    if flags.style in WITHOUT_FLAGS:
        return ""
    if flags.style == HYDRA:
        if not hydra_overrides.is_writable(value):
            return "Hydra only accepts mappings whose keys have letters, digits, _ and -"
        known = hydra_overrides.is_key(key)
        return "" if known else "not a key for Hydra; keys have ASCII letters, digits and . _ / - @"
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict) for item in items):
        return "a mapping cannot be a flag; use `flags: config-file`, or `flags: a.b=c` for Hydra"
    if flags.takes_words and isinstance(value, list):
        found = next((item for item in items if isinstance(item, str) and item.startswith("-")), None)
        return f"{found!r} in a list would be taken for a flag; choose `lists: repeat`" if found is not None else ""
    return ""


def clashes(settings: Iterable[str], style: str) -> Iterator[tuple[str, str]]:
    """Yield (key, other key) of settings that would be the same flag."""
    first: dict[str, str] = {}
    for key in settings:
        flag = key if style in WITHOUT_FLAGS else flag_name(key, style)
        other = first.setdefault(flag, key)
        if other != key:
            yield key, other
