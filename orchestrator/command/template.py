"""Placeholders and flags: a run's values into the words of a command. Pure; no value ever passes a shell."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

# What is known of every run; {flags} stands for several words
PLACES = ("run_dir", "study_dir", "run_id", "cell", "seed", "config_file")
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


def render(words: Sequence[str], values: Mapping[str, str], flags: Sequence[str]) -> list[str]:
    """The words of one run: placeholders filled, `{flags}` replaced by the flags."""
    rendered: list[str] = []
    for word in words:
        rendered += flags if word == f"{{{FLAGS}}}" else [fill(word, values)]
    return rendered


def text(value: Any, style: str) -> str:
    """A value as the text of an argument: Python's spelling (True, None), or YAML's for Hydra's `a.b=c`."""
    if isinstance(value, str):
        return value
    if style == "a.b=c":
        return json.dumps(value, ensure_ascii=False)
    return repr(value)


def flags(settings: Values, style: str) -> list[str]:
    """The settings as words of the command line."""
    return [word for key, value in settings.items() for word in _flag(key, value, style)]


def _flag(key: str, value: Any, style: str) -> list[str]:
    last = key.rpartition(".")[2]
    if style == "--b c":
        return [f"--{last}", *(text(v, style) for v in (value if isinstance(value, list) else [value]))]
    if style in ("config-file", "in-process"):
        return []
    written = {"--a.b=c": f"--{key}", "--a_b=c": f"--{key.replace('.', '_')}", "--key=value": f"--{last}", "a.b=c": key}
    return [f"{written[style]}={text(value, style)}"]


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
    if words and names_or_none(words[0]):
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
        flag = next(iter(_flag(key, "", style)), key)
        other = first.setdefault(flag, key)
        if other != key:
            yield key, other
