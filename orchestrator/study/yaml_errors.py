"""Explain errors from the YAML parser, and what to write instead."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import yaml

_NO_SPACE = re.compile(r"^\s*(?:- )?(?P<key>[A-Za-z_][\w.-]*)[:\uff1a](?P<value>[^\s:/\\].*)$")
_ASSIGNMENT = re.compile(r"^\s*(?:\[[\w.\"-]+\]\s*$|[\w.\"-]+\s*=[^=])", re.MULTILINE)
_REFERENCE = re.compile(r"[^\s,{}\[\]]*\$\{[^{}]*\}[^\s,{}\[\]]*")
_TWO_COLONS = re.compile(r"^\s*(?:- )?[^\s#'\"{\[][^:]*:\s+(?P<value>[^'\"{\[].*:(?:\s.*)?)$")
_QUOTES = {"\u201c": '"', "\u201d": '"', "\u201e": '"', "\u2018": "'", "\u2019": "'", "\u00ab": '"', "\u00bb": '"'}
QUOTED = re.compile(f"[{''.join(_QUOTES)}].*[{''.join(_QUOTES)}]", re.DOTALL)

_OPEN_QUOTE = "the quote that is opened here is not closed"
_NOT_CLOSED = "of line {opened} is not closed, or a comma is missing before this place"
_EXPLANATIONS = {  # PyYAML's report, one line each for context and problem; the first match counts
    r"found character '\\t' that cannot start any token": "a tab; YAML is indented with spaces only",
    "found character '(.+)' that cannot start any token": "a value cannot begin with {0}; put it in quotes",
    "found undefined alias '(.+)'": "*{0}: there is no anchor &{0} above; quote a value that begins with *",
    r"expected ',' or '\]'": f"the `[` {_NOT_CLOSED}",
    "expected ',' or '}'": f"the `{{{{` {_NOT_CLOSED}",
    "scanning an alias|scanning an anchor": "quote a value that begins with * or &",
    "quoted scalar.*\n.*end of stream": _OPEN_QUOTE,
    "unknown escape": "a backslash in double quotes is an escape; use single quotes",
    "scanning a block scalar": ("the text after | or > starts on the next line; quote a value that begins with them"),
    "found '-'|^sequence entries": (
        "`- ` begins an entry of a list, but a key or a value is expected here; check the indentation"
    ),
    "but found '<scalar>'": "text after a closing quote or brace; put the whole value in quotes",
    "^expected <block end>": (
        "this indentation matches no line above; keys that belong together begin in the same column"
    ),
    "^but found another document$": (
        "a second document begins here; one file is one experiment (several: under `configs:`)"
    ),
    "^second occurrence$": "the anchor of line {opened} again; choose another name",
    "^mapping keys are not allowed": "quote a value that begins with ?",
}


def explain(error: yaml.MarkedYAMLError, text: str) -> tuple[int, str]:
    """Return the line (from 1) and what is wrong there, with what to write instead."""
    mark = error.problem_mark or error.context_mark
    lines = text.splitlines() or [""]
    number = min(mark.line if mark else 0, len(lines) - 1)
    line = lines[number]
    opened = min(error.context_mark.line if error.context_mark else number, len(lines) - 1)
    problem = str(error.problem or error)
    if _ASSIGNMENT.match(line) or _ASSIGNMENT.match(lines[opened]):
        return number + 1, other_format(text)
    for place in dict.fromkeys((number, opened, max(0, number - 1))):
        odd = odd_character(lines[place])
        if odd:
            return place + 1, odd
    if "expected ',' or" in problem and mark and text[max(0, mark.index - 1) : mark.index + 1] == "${":
        return number + 1, _unquoted_reference(line, mark.column)
    if problem == "mapping values are not allowed here":
        return _second_colon(lines, number)
    if problem == "could not find expected ':'":
        return opened + 1, no_space(lines[opened]) or f"{lines[opened].strip()[:40]!r}: write `key: value`"
    return _known(problem, str(error.context or ""), number + 1, opened + 1)


def explain_no_mapping(text: str) -> tuple[int, str]:
    """Return the line and the reason for a document that is not a mapping."""
    for number, line in enumerate(text.splitlines(), 1):
        why = odd_character(line) or no_space(line) or other_format(line)
        if why:
            return number, why
    return 1, "the top level must be keys and values, such as `name: my-study`"


def _known(problem: str, context: str, line: int, opened: int) -> tuple[int, str]:
    """Explain problems whose cause does not depend on the text."""
    for pattern, explanation in _EXPLANATIONS.items():
        found = re.search(pattern, f"{context}\n{problem}", re.MULTILINE)
        if found:
            return opened if explanation is _OPEN_QUOTE else line, explanation.format(*found.groups(), opened=opened)
    return line, problem


def _unquoted_reference(line: str, column: int) -> str:
    found = next((match[0] for match in _REFERENCE.finditer(line) if match.start() <= column < match.end()), "${...}")
    return f'put ${{...}} in quotes within {{ }} and [ ]: "{found}"'


def _second_colon(lines: list[str], number: int) -> tuple[int, str]:
    """Explain a misplaced `: `: in a value, below a key that has a value, or after a line that lacks the space."""
    above = next((n for n in range(number - 1, -1, -1) if lines[n].strip() and lines[n].strip()[0] != "#"), number)
    value = _TWO_COLONS.match(lines[number])
    if value:
        return number + 1, f'put a value with a colon in quotes: "{value["value"].strip()[:60]}"'
    if no_space(lines[above]):
        return above + 1, no_space(lines[above])
    return number + 1, f"a key below line {above + 1}, which already has a value; check the indentation"


def no_space(line: str) -> str:
    """Return what to write instead of `key:value`, '' for any other line."""
    found = _NO_SPACE.match(line)
    return f"no space after the colon; write `{found['key']}: {found['value'].strip()[:40]}`" if found else ""


def other_format(text: str) -> str:
    """Return what is wrong with a file that is TOML, INI or Python, '' for any other."""
    return "`key = value` is not YAML (TOML or INI?); write `key: value`" if _ASSIGNMENT.search(text) else ""


def odd_character(text: str) -> str:
    """Return what is wrong with a character that only looks like a space or a colon, or is invisible; '' for none."""
    for char in text:
        if char in "\uff1a\uff0c":
            return f"a full-width {char} (U+{ord(char):04X}); write the ASCII character"
        if not char.isascii() and (unicodedata.category(char) in ("Zs", "Cf") or char in "\u2028\u2029"):
            name = unicodedata.name(char, "character").lower()
            return f"an invisible character (U+{ord(char):04X}, {name}); replace it with a space, or delete it"
    return ""


def typographic(text: str) -> str:
    """Return what is wrong with an unquoted value in typographic quotes, '' for any other."""
    if len(text) < 2 or not QUOTED.fullmatch(text):
        return ""
    return f'{text[0]} {text[-1]} are typographic quotes and belong to the text; write plain ones: "{text[1:-1][:60]}"'
