"""Placeholders and flags: a run's values into the words of a command. Pure; no value ever passes a shell."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import PurePath
from typing import Any, Protocol

from ablatrix.orchestrator.study import hydra_overrides
from ablatrix.orchestrator.study.literals import FloatLiteral, IntLiteral

# What is known of every run; {flags} stands for several words
PLACES = ("run_dir", "study_dir", "run_id", "cell", "seed", "config_file", "python")
FLAGS = "flags"
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9_+~][\w.+~/@-]*")
_OPERATORS = re.compile(r"&&|\|\|?|;|[0-9]*(>>?|<)(&[0-9])?|&|[0-9]*>&[0-9]")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_QUOTED = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.""", re.DOTALL)
SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "fish")
LONGEST_WORD = 131_071  # bytes; what Linux lets one argument have

Values = Mapping[str, Any]


class Flags(Protocol):
    """How settings are written; see settings.Flags."""

    @property
    def style(self) -> str: ...
    @property
    def booleans(self) -> str: ...
    @property
    def lists(self) -> str | None: ...
    @property
    def takes_words(self) -> bool: ...


def split(command: str) -> list[str]:
    """A command line as words, as a shell would split it, but nothing is expanded. Raises ValueError."""
    try:
        words = shlex.split(_QUOTED.sub(_joined, command))
    except ValueError as error:
        raise ValueError(f"cannot be split into words: {error}") from None
    if not words:
        raise ValueError("names no program")
    operator = next((word for word in words if _OPERATORS.fullmatch(word)), None)
    if operator:
        raise ValueError(
            f"no shell reads it, so {operator!r} means nothing; put that into a script and call the script"
        )
    if _ASSIGNMENT.match(words[0]):
        raise ValueError(f"{words[0].partition('=')[0]}=... before the program: give it under `env:`")
    return words


def _joined(match: re.Match[str]) -> str:
    """A line that ends with a backslash goes on in the next; in single quotes it is a text like any other."""
    if match[0] == "\\\n":
        return " "
    return _ESCAPED.sub(lambda e: "" if e[0] == "\\\n" else e[0], match[0]) if match[0][0] == '"' else match[0]


def names(word: str) -> list[str]:
    """The placeholders of a word, in order. Raises ValueError for braces that are none."""
    found = [match[1] for match in _PLACEHOLDER.finditer(word) if match[1] is not None]
    for name in found:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{{{name}}} is no placeholder; write a brace that shall stay as {{{{ or }}}}")
    if re.search(r"[{}]", _PLACEHOLDER.sub("", word)):
        raise ValueError(f"{word!r}: a brace without its partner; write one that shall stay as {{{{ or }}}}")
    return found


def fill(word: str, values: Mapping[str, str]) -> str:
    """The word with its placeholders replaced, each once: what a value holds is left as it is."""

    def one(match: re.Match[str]) -> str:
        return match[0][0] if match[1] is None else values[match[1]]

    return _PLACEHOLDER.sub(one, word)


def render(
    words: Sequence[str], values: Mapping[str, str], settings: Values, flags: Flags, elsewhere: Iterable[str] = ()
) -> list[str]:
    """The words of one run: placeholders filled, `{flags}` replaced by the settings that have none of their own.

    values: of every placeholder, as text. settings: the experiment's, with their types. elsewhere: settings that reach
    the command in another way.
    """
    named = {name for word in words for name in names(word)} | set(elsewhere)
    rest = {key: value for key, value in settings.items() if key not in named}
    rendered: list[str] = []
    for word in words:
        if word == f"{{{FLAGS}}}":
            rendered += flag_words(rest, flags)
        elif flags.style == "a.b=c":
            rendered.append(_fill_override(word, values, settings))
        else:
            rendered.append(fill(word, values))
    return rendered


def _fill_override(word: str, values: Mapping[str, str], settings: Values) -> str:
    """The word filled; where it is a Hydra override, its value is quoted as Hydra's grammar wants."""
    parts = hydra_overrides.split(word)
    if parts is None or not names(parts[1]) or names(parts[0]):
        return fill(word, values)
    key, rest = parts
    placeholder = _PLACEHOLDER.fullmatch(rest)
    if placeholder and placeholder[1] in settings:
        return key + hydra_overrides.value(settings[placeholder[1]])
    literal = hydra_overrides.is_bare(_PLACEHOLDER.sub("", rest))
    return key + (hydra_overrides.value(fill(rest, values)) if literal else fill(rest, values))


def decisive(value: Any) -> Any:
    """The value as it decides a result: 1e-3 is 0.001, but 007 and 1.10 may be names and not numbers."""
    if isinstance(value, list):
        return [decisive(item) for item in value]
    return float(value) if isinstance(value, FloatLiteral) and "e" in value.spelling.lower() else value


def text(value: Any, style: str) -> str:
    """A value as the text of a placeholder: numbers as they are written, Python's True and None; Hydra has its own."""
    if isinstance(value, str):
        return value
    if style == "a.b=c":
        return hydra_overrides.value(value)
    return value.spelling if isinstance(value, IntLiteral | FloatLiteral) else repr(value)


def flag_words(settings: Values, flags: Flags) -> list[str]:
    """The settings as words of the command line."""
    return [word for key, value in settings.items() for word in _flag(key, value, flags)]


def _flag(key: str, value: Any, flags: Flags) -> list[str]:
    if flags.style in ("config-file", "in-process"):
        return []
    if flags.style == "a.b=c":
        return [hydra_overrides.override(key, value)]
    name = flag_name(key, flags.style)
    if flags.booleans != "value" and (value is None or isinstance(value, bool)):
        return _switch(name, value, flags.booleans)
    if isinstance(value, list) and flags.lists == "repeat":
        return [word for item in value for word in _option(name, item, flags.style)]
    if isinstance(value, list) and flags.takes_words:
        return [name, *map(_as_word, value)]
    return _option(name, value, flags.style)


def flag_name(key: str, style: str) -> str:
    """`--lr` of a key, as the style writes it; the key itself for Hydra."""
    last = key.rpartition(".")[2]
    names = {"--a.b=c": f"--{key}", "--a_b=c": f"--{key.replace('.', '_')}", "a.b=c": key}
    return names.get(style, f"--{last}")


def _option(name: str, value: Any, style: str) -> list[str]:
    """`--b c` in two words, unless the value would be taken for another flag."""
    shown = text(value, style)
    return [name, shown] if style == "--b c" and not shown.startswith("-") else [f"{name}={shown}"]


def _switch(name: str, value: bool | None, booleans: str) -> list[str]:
    """A flag without a value: there for true; for false `--no-...`, or nothing; nothing for null."""
    if value:
        return [name]
    return [f"--no-{name.removeprefix('--')}"] if value is False and booleans == "no-prefix" else []


def _as_word(value: Any) -> str:
    """An item of a list: argparse knows negative numbers only without an exponent."""
    shown = text(value, "")
    return f"{Decimal(shown):f}" if isinstance(value, float) and math.isfinite(value) and value < 0 else shown


# ---- what can be wrong


def word_problems(words: Sequence[str]) -> Iterator[str]:
    """Words that cannot be filled safely."""
    for number, word in enumerate(words):
        try:
            found = names(word)
        except ValueError as error:
            yield str(error)
            continue
        if FLAGS in found and word != f"{{{FLAGS}}}":
            yield f"{word!r}: {{{FLAGS}}} stands for several words and must be a word of its own"
        elif found and _is_script(words, number):
            yield (
                f"{word!r}: a shell would read the values in it again; let it take them as arguments: "
                "[bash, -c, 'exec python train.py \"$@\"', bash, '{flags}']"
            )
    if words and set(names_or_none(words[0])) - {"python"}:
        yield f"{words[0]!r}: the program cannot depend on the run"


def names_or_none(word: str) -> list[str]:
    try:
        return names(word)
    except ValueError:
        return []


def _is_script(words: Sequence[str], number: int) -> bool:
    """Is this word what `bash -c` reads?"""
    before = words[number - 1] if number else ""
    if not re.fullmatch(r"-[a-z]*c", before):
        return False
    return any(PurePath(word).name in SHELLS for word in words[: number - 1])


def value_problem(value: Any) -> str:
    """Why a value cannot be an argument; '' where it can."""
    if isinstance(value, list):
        return next((problem for item in value if (problem := value_problem(item))), "")
    if isinstance(value, dict):
        return next((p for pair in value.items() for item in pair if (p := value_problem(item))), "")
    if not isinstance(value, str | int | float | bool | None):
        return f"must be a text, a number, true, false, null or a list of those, got {value!r}"
    if not isinstance(value, str):
        return ""
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        return "has characters that cannot be passed to a program"
    if b"\0" in encoded:
        return "has a NUL character, which no program can be passed"
    return f"is longer than {LONGEST_WORD} bytes; pass it in a file" if len(encoded) > LONGEST_WORD - 1000 else ""


def flag_problem(key: str, value: Any, flags: Flags) -> str:
    """Why a setting cannot be written as a flag of this style; '' where it can."""
    if flags.style in ("config-file", "in-process"):
        return ""
    if flags.style == "a.b=c":
        if not hydra_overrides.is_writable(value):
            return "Hydra takes mappings only with keys of letters, digits, _ and -"
        return (
            ""
            if hydra_overrides.is_key(key)
            else "Hydra takes no such key; a key has ASCII letters, digits and . _ / - @"
        )
    items = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict) for item in items):
        return "a mapping cannot be a flag; use `flags: config-file`, or `flags: a.b=c` for Hydra"
    if flags.takes_words and isinstance(value, list):
        found = next((item for item in items if isinstance(item, str) and item.startswith("-")), None)
        return f"{found!r} in a list would be taken for a flag; choose `lists: repeat`" if found is not None else ""
    return ""


def key_problem(key: str) -> str:
    """Why a name cannot be a setting; '' where it can."""
    if _NAME.fullmatch(key) and key not in (*PLACES, FLAGS):
        return ""
    if key in (*PLACES, FLAGS):
        return f"{{{key}}} is known of every run; choose another name"
    return "a setting's name has letters, digits and _ . + ~ / @ - only"


def clashes(settings: Iterable[str], style: str) -> Iterator[tuple[str, str]]:
    """(key, other key) of settings that would be one and the same flag."""
    first: dict[str, str] = {}
    for key in settings:
        flag = key if style in ("config-file", "in-process") else flag_name(key, style)
        other = first.setdefault(flag, key)
        if other != key:
            yield key, other


_LABELLED = re.compile(r"\bsrun\s(?:.*\s)?(?:--label|-l)(?:\s|$)", re.DOTALL)


def are_labelled(command: Sequence[str]) -> bool:
    """True if srun begins each line with its rank."""
    return bool(_LABELLED.search(" ".join(command)))
