"""What looks like a secret: by the name it goes under, or by its form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

# Ends of names: WANDB_API_KEY, db.password, clientSecret
PHRASES = (
    *("password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "bearer", "jwt"),
    *("api key", "apikey", "private key", "access key", "secret key", "account key", "signing key"),
    *("openai key", "wandb key", "anthropic key", "github pat", "gitlab pat", "db pass", "user pass", "smtp pass"),
    *("api keys", "access tokens"),
)
# What may stand behind such a name: PASSWORD_PROD, HF_TOKEN_READ
USES = ("prod", "production", "dev", "staging", "test", "read", "write", "ro", "rw")
# `pad_token: "<pad>"`, `max_token: 5`: what the field calls a token
TEXT_TOKENS = re.compile(
    "pad|eos|bos|mask|cls|sep|unk|special|start|end|begin|stop|image|audio|text|prefix|suffix|extra|per|last|first|"
    "next|prompt|delimiter|separator|newline|think|tool|class|max|min|num|n|by|each"
)
# Each pattern begins where only one place of a long word can match, so that a line's length counts once
FORMS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{16,}",
    "a Slack token": r"\b(?:xox[abeoprs]|xapp)-[A-Za-z0-9-]{10,}",
    "a Slack webhook": r"\bhooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,}",
    "a PyPI token": r"\bpypi-AgE[A-Za-z0-9_-]{20,}",
    "an npm token": r"\bnpm_[A-Za-z0-9]{36}\b",
    "a Stripe key": r"\b[sr]k_(?:live|test)_[A-Za-z0-9]{16,}",
    "a Docker token": r"\bdckr_pat_[A-Za-z0-9_-]{20,}",
    "a Google token": r"\bya29\.[A-Za-z0-9_-]{20,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google API key": r"\bAIza[A-Za-z0-9_-]{35}",
    "a JSON web token": r"[A-Za-z0-9_-]{8}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an address with a password": r"(?<=[A-Za-z0-9+.-])://[^\s/@:'\"]*:(?![${])[^\s/'\"]+@",
    "an authorization header": r"(?i:\bauthorization\s*[:=]\s*(?:bearer|basic|token)\s+)[^\s'\"$]+",
    "a key for W&B": r"\bwandb\s+login\s+(?:-\S+\s+)*[0-9a-f]{40}\b|\bwandb_v1_[A-Za-z0-9_-]{20,}",
}
_FORMS = {kind: re.compile(pattern) for kind, pattern in FORMS.items()}
_HEX_KEY = re.compile(r"[0-9a-f]{40}")  # of W&B; a git commit too, so only under a name that ends with `key`
# $NAME, {setting} or a path below one, $(command), <placeholder>, a pattern that begins with a group, ***
_REFERS = re.compile(
    r"(?:\$[A-Z_][A-Z0-9_]*|\{[A-Za-z_][\w.-]*\})+(?:/.*)?|\$[{(].*|`.*|<[^<>]*>|"
    r"\(\?(?:[P:=!<]|[aimsux-]+[:)]).*|\*+",
    re.DOTALL,
)
# NAME=value and --name value, as a shell or an argument parser reads them
_WORD = r"(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s\"';&|]+)"
_ASSIGNED = re.compile(
    rf"(?<![\w./$-])(?:(?P<name>-*[A-Za-z_][\w.-]*)=|(?P<flag>--?[A-Za-z_][\w.-]*)[ \t]+(?!-)){_WORD}"
)
_OPTION = re.compile(r"--?[A-Za-z_][\w.-]*")

# Files that hold secrets, by their names
FILES = (
    *(".env", ".env.*", "*.env", ".netrc", "_netrc", ".pypirc", ".npmrc", ".pgpass", ".htpasswd", ".git-credentials"),
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    *("credentials*", "*credentials.json", "secret.*", "secrets.*", "*.secret", "pip.conf", "wandb-settings"),
)
_KEY_BLOCK = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)(?:\n(?!.-----END)(?!diff --git).*)*")
_QUOTED = re.compile(r"(?<![\w.-])(?P<name>[\w.-]+)[\"']?\s*[:=]\s*(?P<quote>[\"'])(?P<value>[^\"'\n]{6,})(?P=quote)")
_PLAIN = re.compile(
    r"^[-+ ]?[ \t]*(?:export[ \t]+|-[ \t]+)?(?P<name>[\w.-]+)[ \t]*[:=][ \t]*(?P<value>[^\s\"'].*)$", re.MULTILINE
)
# Git tells a file's name here, twice the same; in quotes with escapes where it has unusual characters
_HEADER = re.compile(
    r"diff --git (?:a/(?P<plain>.{1,9999}) b/(?P=plain)|\"a/(?P<quoted>.{1,9999})\" \"b/(?P=quoted)\")"
)
# What stands behind the numbers is a line from further up, cut off anywhere
_HEADING = re.compile(r"^(@@ [-+\d, ]+ @@).+$", re.MULTILINE)
CODE = (".py", ".js", ".j2", ".c", ".cpp", ".cu", ".rs", ".md", ".html", ".css")
MASK = "<masked>"


def name(key: str) -> bool:
    """Does a key, dotted or not, or a variable's name say that what it holds is a secret?"""
    *outer, last = [_words(part) for part in key.split(".")]
    return any(map(_is_phrase, outer)) or _is_phrase(last) or _is_token(last)


def literal(key: str, value: Any) -> bool:
    """Is the value of a key with such a name one itself? Not a switch, a placeholder, or a number of tokens."""
    if value is None or isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    text = str(value).strip("\"' \t")
    if _is_token(_words(key.rpartition(".")[2])) and re.fullmatch(r"[-+]?[\d.]+", text):
        return False
    return (
        bool(text)
        and not _REFERS.fullmatch(text)
        and text.lower() not in ("none", "null", "true", "false", "yes", "no")
    )


def form(text: str, key: str = "") -> str:
    """What kind of secret a text holds by its form, '' for none. key: the name it goes under."""
    found = next((kind for kind, pattern in _FORMS.items() if pattern.search(text)), "")
    if not found and _words(key)[-1:] == ["key"] and _HEX_KEY.fullmatch(text.strip()):
        return "a key of 40 digits"
    return found


def file(path: str) -> bool:
    """Is a file of this name there to hold secrets? Python code, which a run needs, is not."""
    base = path.rpartition("/")[2].lower()
    return not base.endswith(".py") and any(fnmatchcase(base, pattern) for pattern in FILES)


def masked(patch: str) -> str:
    """A git patch without what its files, names and forms give away as secrets; the other lines come back as they are.

    It has the prefixes a/ and b/ and no renames or colours; what does not look like that is left out as a whole.
    """
    parts = re.split(r"^(?=diff --git )", patch, flags=re.MULTILINE)
    return "".join(_masked_file(part) for part in parts if part)


def _masked_file(part: str) -> str:
    header = part.partition("\n")[0]
    found = _HEADER.fullmatch(header)
    if not found:
        return "# left out: nothing tells which file these lines are of\n"
    path = found["plain"] or found["quoted"]
    if file(path):
        return f"{header}\n# left out: the name says that it holds secrets\n"
    part = _HEADING.sub(r"\1", part)
    part = _KEY_BLOCK.sub(rf"\1 {MASK}", part)
    for pattern in _FORMS.values():
        part = pattern.sub(MASK, part)
    part = _QUOTED.sub(_without_value, part)
    # in code, what stands there without quotes is an expression
    return part if path.endswith(CODE) else _PLAIN.sub(_without_value, part)


def _without_value(found: re.Match[str]) -> str:
    if not (name(found["name"]) and literal(found["name"], found["value"])):
        return found[0]
    start = found.start()
    return found[0][: found.start("value") - start] + MASK + found[0][found.end("value") - start :]


def assigned(line: str) -> str:
    """The name under which a line of a shell, or of arguments, gives a secret; '' for none."""
    return next((key for key, _ in _assignments(line)), "")


def given(words: Sequence[Any]) -> str:
    """The option among the words of a command whose value, the next word, is a secret; '' for none."""
    for option, value in pairwise(words):
        key = option.lstrip("-") if isinstance(option, str) and _OPTION.fullmatch(option) else ""
        if name(key) and literal(key, value) and not str(value).startswith("-"):
            return key
    return ""


def _assignments(line: str) -> Iterator[tuple[str, re.Match[str]]]:
    for found in _ASSIGNED.finditer(line):
        key = (found["name"] or found["flag"]).lstrip("-")
        if name(key) and literal(key, found["value"]):
            yield key, found


def _words(key: str) -> list[str]:
    """`WANDB_API_KEY`, `wandbApiKey` and `wandb-api-key2` as wandb, api, key."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", key)
    words = (word.rstrip("0123456789") for word in re.split(r"[^A-Za-z0-9]+", spaced.lower()))
    return [word for word in words if word]


def _is_phrase(words: list[str]) -> bool:
    words = _without_use(words)
    joined = f" {' '.join(words)}"  # PGPASSWORD has no word before its own
    return joined.endswith((*(f" {phrase}" for phrase in PHRASES), "password", "passwd")) or words[1:][-1:] == ["pwd"]


def _is_token(words: list[str]) -> bool:
    """`token`, `hf_token`, `auth`; as the last word only, and not of `pad_token`."""
    words = _without_use(words)
    return words[-1:] == ["auth"] or (words[-1:] == ["token"] and not any(map(TEXT_TOKENS.fullmatch, words[-2:-1])))


def _without_use(words: list[str]) -> list[str]:
    return words[:-1] if words[-1:] and words[-1] in USES else words
