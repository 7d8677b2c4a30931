"""Find secrets in experiment files, arguments and patches, by the name of a key or by the form of a value.

Experiment files and --set must not contain secrets, because every run folder would keep them. A message gives the place
and the key, never the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ablatrix.trainer.rundir.errors import ConfigError, UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.yaml_tree import KeyPath, Tree

# Ends of names: WANDB_API_KEY, db.password, clientSecret
PHRASES = (
    *("password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials", "bearer", "jwt"),
    *("api key", "apikey", "private key", "access key", "secret key", "account key", "signing key"),
    *("openai key", "wandb key", "anthropic key", "github pat", "gitlab pat", "db pass", "user pass", "smtp pass"),
    *("api keys", "access tokens", "webhook", "webhook url"),
)
# Suffixes that may follow such a name: PASSWORD_PROD, HF_TOKEN_READ
USES = ("prod", "production", "dev", "staging", "test", "read", "write", "ro", "rw")
# Words before `token` in the names of text tokens: `pad_token: "<pad>"`, `max_token: 5`
TEXT_TOKENS = re.compile(
    "pad|eos|bos|mask|cls|sep|unk|special|start|end|begin|stop|image|audio|text|prefix|suffix|extra|per|last|first|"
    "next|prompt|delimiter|separator|newline|think|tool|class|max|min|num|n|by|each"
)
# Each pattern is anchored so that matching a long line takes linear time
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
_HEX_KEY = re.compile(r"[0-9a-f]{40}")  # of W&B; also a git commit, so it counts only under a name that ends in `key`
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

# Names of files that contain secrets
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
# Git repeats the file's name here; unusual names are quoted and escaped
_HEADER = re.compile(
    r"diff --git (?:a/(?P<plain>.{1,9999}) b/(?P=plain)|\"a/(?P<quoted>.{1,9999})\" \"b/(?P=quoted)\")"
)
# Git appends a truncated earlier line to the line numbers of a hunk
_HEADING = re.compile(r"^(@@ [-+\d, ]+ @@).+$", re.MULTILINE)
CODE = (".py", ".js", ".j2", ".c", ".cpp", ".cu", ".rs", ".md", ".html", ".css")
MASK = "<masked>"
ESCAPE = "not_secret"  # key of an experiment file: names of settings that only look like secrets
_ADVICE = (
    "it would be stored in every run's folder; set it as a shell variable and list that under `export:`, "
    "as in `export: [WANDB_API_KEY]`"
)
_ADVICE_ON_NOTIFY = (
    "it would be stored in the study's folder; set it as a shell variable and give that, as in "
    "`webhook: $ABLATRIX_WEBHOOK`"
)
_ENVIRONMENT = re.compile(r"\$\{\s*env:\s*([^,{}\s]+)")


# ---- experiment files and --set


def refuse_secrets(tree: Tree) -> None:
    """Raise ConfigError listing every secret in a file as written, ignoring comments."""
    refuse(find_secrets(tree, tree.data, (), escaped_names(tree.data)))


def refuse(found: Iterable[str]) -> None:
    """Raise ConfigError with what `find_secrets` found, if anything."""
    problems = list(dict.fromkeys(found))
    if problems:
        raise ConfigError(problems)


def refuse_set(key: str, value: Any) -> None:
    """Raise UserError if `key=value` from the command line is a secret."""
    for _, reason, _ in _search({key: value}, (), ()):
        shown = "..." if find_form(key) else key
        raise UserError(f"--set {shown}: {reason}; {_ADVICE}")


def escaped_names(data: Mapping[str, Any]) -> list[str]:
    """Return the settings listed under `not_secret`."""
    names = data.get(ESCAPE)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def find_secrets(tree: Tree, value: Any, path: KeyPath, escaped: Sequence[str]) -> Iterator[str]:
    """Yield a problem for each secret in the value at `path`. escaped: settings that only look like secrets."""
    for place, reason, escape in _search(value, path, escaped):
        if place[:1] == ("notify",):
            yield f"{tree.position(place)}: {'.'.join(place)}: {reason}; {_ADVICE_ON_NOTIFY}"
        else:
            yield f"{tree.position(place)}: {'.'.join(place)}: {reason}; {_ADVICE}{escape}"


def _search(value: Any, path: KeyPath, escaped: Sequence[str]) -> Iterator[tuple[KeyPath, str, str]]:
    """Yield (path, reason, how to allow it) for each secret."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if find_form(key):
                yield path, f"a key below looks like {find_form(key)}", ""
            else:
                yield from _search(inner, (*path, key), escaped)
        return
    if isinstance(value, list):
        for inner in value:
            yield from _search(inner, path, escaped)
    reason = _reason_in_words(value) if isinstance(value, list) else _reason(".".join(path), value)
    exempt = (
        not path or path[0] in (ESCAPE, "export") or ".".join(("", *path)).endswith(tuple(f".{e}" for e in escaped))
    )
    if reason and not exempt:
        yield path, reason, f"; if it is not a secret: `{ESCAPE}: [{path[-1]}]`"


def _reason_in_words(words: Sequence[Any]) -> str:
    """Return why two neighboring list items, such as --api-key and its key, are a secret; '' if they are not."""
    option = find_secret_option(words)
    form = find_form(" ".join(word for word in words if isinstance(word, str)))
    return f"it gives a secret to {option}" if option else f"it looks like {form}" if form else ""


def _reason(key: str, value: Any) -> str:
    """Return why a value is a secret, '' if it is not."""
    text = value if isinstance(value, str) else ""
    read = next((name for name in _ENVIRONMENT.findall(text) if is_secret_name(name)), "")
    if read:
        return f"${{env:{read}}} would copy a secret out of your environment"
    if is_secret_name(key) and is_secret_value(key, value):
        return "its name says that it is a secret"
    form = find_form(text, key)
    if form:
        return f"it looks like {form}"
    name = find_assignment(text)
    return f"it gives a secret to {name}" if name else ""


# ---- names and values


def is_secret_name(key: str) -> bool:
    """True if a key, dotted or not, or a variable is named like a secret."""
    *outer, last = [_words(part) for part in key.split(".")]
    return any(map(_is_phrase, outer)) or _is_phrase(last) or _is_token(last)


def is_secret_value(key: str, value: Any) -> bool:
    """True if the value of a key with such a name is a secret: not a boolean, a reference, or a number of tokens."""
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


def find_form(text: str, key: str = "") -> str:
    """Return the kind of secret that a string contains, '' for none. key: its name."""
    found = next((kind for kind, pattern in _FORMS.items() if pattern.search(text)), "")
    if not found and _words(key)[-1:] == ["key"] and _HEX_KEY.fullmatch(text.strip()):
        return "a key of 40 digits"
    return found


def is_secret_file(path: str) -> bool:
    """True if a file of this name usually holds secrets; never for Python code, which a run needs."""
    base = path.rpartition("/")[2].lower()
    return not base.endswith(".py") and any(fnmatchcase(base, pattern) for pattern in FILES)


def find_assignment(line: str) -> str:
    """Return the name to which a shell line or argument line assigns a secret; '' for none."""
    for found in _ASSIGNED.finditer(line):
        key = (found["name"] or found["flag"]).lstrip("-")
        if is_secret_name(key) and is_secret_value(key, found["value"]):
            return key
    return ""


def find_secret_option(words: Sequence[Any]) -> str:
    """Return the option in a command whose value, the next word, is a secret; '' for none."""
    for option, value in pairwise(words):
        key = option.lstrip("-") if isinstance(option, str) and _OPTION.fullmatch(option) else ""
        if is_secret_name(key) and is_secret_value(key, value) and not str(value).startswith("-"):
            return key
    return ""


def _words(key: str) -> list[str]:
    """Split a key into words: `WANDB_API_KEY`, `wandbApiKey` and `wandb-api-key2` become wandb, api, key."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", key)
    words = (word.rstrip("0123456789") for word in re.split(r"[^A-Za-z0-9]+", spaced.lower()))
    return [word for word in words if word]


def _is_phrase(words: list[str]) -> bool:
    words = _without_use(words)
    joined = f" {' '.join(words)}"  # PGPASSWORD is one word
    return joined.endswith((*(f" {phrase}" for phrase in PHRASES), "password", "passwd")) or words[1:][-1:] == ["pwd"]


def _is_token(words: list[str]) -> bool:
    """True for `token`, `hf_token` and `auth`, only as the last word; False for `pad_token`."""
    words = _without_use(words)
    return words[-1:] == ["auth"] or (words[-1:] == ["token"] and not any(map(TEXT_TOKENS.fullmatch, words[-2:-1])))


def _without_use(words: list[str]) -> list[str]:
    return words[:-1] if words[-1:] and words[-1] in USES else words


# ---- patches


def mask_patch(patch: str) -> str:
    """Return a git patch with its secrets masked; other lines are unchanged.

    The patch must have the prefixes a/ and b/ and no renames or colors; parts in any other form are left out.
    """
    parts = re.split(r"^(?=diff --git )", patch, flags=re.MULTILINE)
    return "".join(_mask_file(part) for part in parts if part)


def _mask_file(part: str) -> str:
    header = part.partition("\n")[0]
    found = _HEADER.fullmatch(header)
    if not found:
        return "# left out: cannot tell which file these lines belong to\n"
    path = found["plain"] or found["quoted"]
    if is_secret_file(path):
        return f"{header}\n# left out: the name says that it holds secrets\n"
    part = _HEADING.sub(r"\1", part)
    part = _KEY_BLOCK.sub(rf"\1 {MASK}", part)
    for pattern in _FORMS.values():
        part = pattern.sub(MASK, part)
    part = _QUOTED.sub(_without_value, part)
    # in code, an unquoted value is an expression
    return part if path.endswith(CODE) else _PLAIN.sub(_without_value, part)


def _without_value(found: re.Match[str]) -> str:
    if not (is_secret_name(found["name"]) and is_secret_value(found["name"], found["value"])):
        return found[0]
    start = found.start()
    return found[0][: found.start("value") - start] + MASK + found[0][found.end("value") - start :]
