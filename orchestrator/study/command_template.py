"""Placeholders of a command: fill a run's values into its words. Pure; no value is interpreted by a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ablatrix.orchestrator.study import hydra_overrides
from ablatrix.orchestrator.study.command_flags import HYDRA, Flags, flag_words
from ablatrix.orchestrator.study.literals import FloatLiteral

PLACES = ("run_dir", "study_dir", "run_id", "cell", "seed", "config_file", "python")  # known for every run
FLAGS = "flags"  # {flags} expands to several words
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9_+~][\w.+~/@-]*")
_OPERATORS = re.compile(r"&&|\|\|?|;|[0-9]*(>>?|<)(&[0-9])?|&|[0-9]*>&[0-9]")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_QUOTED = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.""", re.DOTALL)
_LABELLED = re.compile(r"\bsrun\s(?:.*\s)?(?:--label|-l)(?:\s|$)", re.DOTALL)
SHELLS = ("sh", "bash", "dash", "zsh", "ksh", "fish")
LONGEST_WORD = 131_071  # bytes in one argument on Linux


def split(command: str) -> list[str]:
    """Split a command line into words as a shell does, without expansion. Raise ValueError if it is malformed."""
    try:
        words = shlex.split(_QUOTED.sub(_join_lines, command))
    except ValueError as error:
        raise ValueError(f"invalid shell quoting: {error}") from None
    if not words:
        raise ValueError("no program given")
    operator = next((word for word in words if _OPERATORS.fullmatch(word)), None)
    if operator:
        raise ValueError(f"no shell reads it, so {operator!r} has no effect; put it into a script")
    if _ASSIGNMENT.match(words[0]):
        raise ValueError(f"{words[0].partition('=')[0]}=... before the program: give it under `env:`")
    return words


def _join_lines(match: re.Match[str]) -> str:
    """Join lines that end in a backslash, except inside single quotes."""
    if match[0] == "\\\n":
        return " "
    return _ESCAPED.sub(lambda e: "" if e[0] == "\\\n" else e[0], match[0]) if match[0][0] == '"' else match[0]


def placeholders(word: str) -> list[str]:
    """Return the placeholders in a word, in order. Raise ValueError for any other braces."""
    found = [match[1] for match in _PLACEHOLDER.finditer(word) if match[1] is not None]
    for name in found:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{{{name}}} is not a placeholder; write a literal brace as {{{{ or }}}}")
    if re.search(r"[{}]", _PLACEHOLDER.sub("", word)):
        raise ValueError(f"{word!r}: unmatched brace; write a literal one as {{{{ or }}}}")
    return found


def valid_placeholders(word: str) -> list[str]:
    """Return the placeholders in a word, none if it contains any other braces."""
    try:
        return placeholders(word)
    except ValueError:
        return []


def fill(word: str, values: Mapping[str, str]) -> str:
    """Return the word with each placeholder replaced once: braces in values are kept."""
    return _PLACEHOLDER.sub(lambda match: match[0][0] if match[1] is None else values[match[1]], word)


def render(
    words: Sequence[str],
    values: Mapping[str, str],
    settings: Mapping[str, Any],
    flags: Flags,
    passed: Iterable[str] = (),
) -> list[str]:
    """Return the words of a run: placeholders filled, `{flags}` replaced by the settings without a placeholder.

    values: of every placeholder, as strings. settings: of the experiment, with their types. passed: settings that reach
    the command some other way.
    """
    named = {name for word in words for name in placeholders(word)} | set(passed)
    rest = {key: value for key, value in settings.items() if key not in named}
    rendered: list[str] = []
    for word in words:
        if word == f"{{{FLAGS}}}":
            rendered += flag_words(rest, flags)
        else:
            rendered.append(_fill_override(word, values, settings) if flags.style == HYDRA else fill(word, values))
    return rendered


def _fill_override(word: str, values: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """Fill the word; the value of a Hydra override is quoted for Hydra's grammar."""
    parts = hydra_overrides.split(word)
    if parts is None or not placeholders(parts[1]) or placeholders(parts[0]):
        return fill(word, values)
    key, rest = parts
    placeholder = _PLACEHOLDER.fullmatch(rest)
    if placeholder and placeholder[1] in settings:
        return key + hydra_overrides.value(settings[placeholder[1]])
    literal = hydra_overrides.is_bare(_PLACEHOLDER.sub("", rest))
    return key + (hydra_overrides.value(fill(rest, values)) if literal else fill(rest, values))


def decisive(value: Any) -> Any:
    """Return the value in the form that affects results: 1e-3 is 0.001, but 007 and 1.10 may be names."""
    if isinstance(value, list):
        return [decisive(item) for item in value]
    return float(value) if isinstance(value, FloatLiteral) and "e" in value.spelling.lower() else value


def are_labelled(command: Sequence[str]) -> bool:
    """True if srun prefixes each line with its rank."""
    return bool(_LABELLED.search(" ".join(command)))


# ---- problems


def word_problems(words: Sequence[str]) -> Iterator[str]:
    """Yield the problems of words that cannot be filled safely."""
    for number, word in enumerate(words):
        try:
            found = placeholders(word)
        except ValueError as error:
            yield str(error)
            continue
        if FLAGS in found and word != f"{{{FLAGS}}}":
            yield f"{word!r}: {{{FLAGS}}} is replaced by several words and must be a word by itself"
        elif found and _is_script(words, number):
            yield (
                f"{word!r}: a shell would interpret the values in it; pass them as arguments: "
                "[bash, -c, 'exec python train.py \"$@\"', bash, '{flags}']"
            )
    if words and set(valid_placeholders(words[0])) - {"python"}:
        yield f"{words[0]!r}: the program cannot depend on the run"


def _is_script(words: Sequence[str], number: int) -> bool:
    """True if `bash -c` interprets the word."""
    before = words[number - 1] if number else ""
    if not re.fullmatch(r"-[a-z]*c", before):
        return False
    return any(PurePath(word).name in SHELLS for word in words[: number - 1])


def value_problem(value: Any) -> str:
    """Return why a value cannot be an argument; '' if it can."""
    if isinstance(value, list):
        return next(filter(None, map(value_problem, value)), "")
    if isinstance(value, dict):
        return next(filter(None, (value_problem(item) for pair in value.items() for item in pair)), "")
    if not isinstance(value, str | int | float | bool | None):
        return f"must be a string, a number, true, false, null or a list of those, got {value!r}"
    if not isinstance(value, str):
        return ""
    if "\0" in value:
        return "NUL characters cannot be passed to a program"
    too_long = len(value.encode(errors="replace")) > LONGEST_WORD - 1000
    return f"longer than {LONGEST_WORD} bytes; pass it in a file" if too_long else ""


def key_problem(key: str) -> str:
    """Return why a name cannot be a setting; '' if it can."""
    if key in (*PLACES, FLAGS):
        return f"{{{key}}} is defined for every run; choose another name"
    return "" if _NAME.fullmatch(key) else "setting names consist of letters, digits and _ . + ~ / @ -"
