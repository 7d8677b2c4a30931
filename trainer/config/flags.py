"""The command line of a training run: one flag per setting, generated from the fields of the configuration."""

from __future__ import annotations

import argparse
import ast
import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from ablatrix.models.config import SHORT_FORMS
from ablatrix.trainer.config import optimization
from ablatrix.trainer.config.run_config import RunConfig
from ablatrix.trainer.config.suggestions import hint
from ablatrix.trainer.config.validation import keys, read_tree, validate
from ablatrix.trainer.rundir.errors import ConfigError

EXIT_CODES = "exit codes: 0 done, 75 stopped by a signal after a checkpoint, 2 invalid flags, 1 any other failure"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError([message.removeprefix("argument ").replace("expected one argument", "value missing")])


def make_parser(section: str = "") -> argparse.ArgumentParser:
    """Return the parser of `python -m ablatrix.trainer`: --section.name=value per setting, of one section or all."""
    parser = _Parser(
        usage="python -m ablatrix.trainer [--config FILE] [section.name=value ...]",
        description="Train one model and write its results to --system.work_dir. Flags override the file.\n"
        f"The dashes of flags are optional; --help SECTION shows one of {', '.join(RunConfig.model_fields)}.",
        epilog=EXIT_CODES,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=6, width=120),
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file or a run's config.json to start from")
    groups: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    with contextlib.suppress(ValueError):  # a default from the environment, such as ABLATRIX_CACHE, may be invalid
        defaults = RunConfig().model_dump(mode="json")
    shown = [section] if section in RunConfig.model_fields else list(RunConfig.model_fields)
    for key, field in keys():
        head, _, name = key.partition(".")
        if head not in shown:
            continue
        group = groups.setdefault(head, None) or parser.add_argument_group(head)
        groups[head] = group
        text = field.description + _describe_default(field.description, defaults.get(head, {}).get(name))
        group.add_argument(f"--{key}", dest=key, metavar="VALUE", help=text.replace("%", "%%"))
    return parser


def _join_values(argv: Sequence[str]) -> list[str]:
    """Return the arguments in the form that argparse accepts.

    `--key -0.5` becomes `--key=-0.5`, because a value that starts with a dash would look like a flag; `key=0.5` becomes
    `--key=0.5`.
    """
    joined: list[str] = []
    for word in argv:
        last = joined[-1] if joined else ""
        waits = last.startswith("--") and "=" not in last
        if word.startswith("-") and not word.startswith("--") and waits:
            joined[-1] = f"{last}={word}"
        elif not waits and re.match(r"[a-z]+\.\w+=", word):
            joined.append(f"--{word}")
        else:
            joined.append(word)
    return joined


def from_flags(argv: Sequence[str]) -> RunConfig:
    """Parse `--a.b=c`, `--a.b c`, `a.b=c` and `--config FILE` (flags override the file, later flags earlier ones).

    Raises ConfigError naming every flag that is unknown or whose value has the wrong type.
    """
    namespace, unknown = make_parser().parse_known_args(_join_values(argv))
    flags: dict[str, str] = vars(namespace)
    problems = list(_describe_unknown(unknown))
    if problems:
        raise ConfigError(problems)
    path = flags.pop("config", None)
    tree: dict[str, Any] = read_tree(path) if path else {}
    validate(tree)  # report the file's problems as such
    _drop_overridden(tree, flags)
    fields = dict(keys())
    for key, text in flags.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = parse_value(text, fields[key].annotation)
    try:
        return validate(tree, strict=False)
    except ConfigError as error:
        faults = [f"--{fault}" if fault.partition(":")[0] in flags else fault for fault in error.problems]
        raise ConfigError(faults) from None


def parse_value(text: str, annotation: Any) -> Any:
    """Return a flag's value in a form that pydantic accepts: None and tuples are parsed here, the rest by pydantic."""
    if text.lower() in ("none", "null") and type(None) in getattr(annotation, "__args__", ()):
        return None
    if annotation in (tuple[str, ...], str | tuple[str, ...]) and text[:1] not in ("(", "["):
        return text
    if "tuple" in str(annotation):
        try:
            return ast.literal_eval(text if text[:1] in "([" else f"({text})")
        except (ValueError, SyntaxError):
            return text
    return text


def _describe_default(description: str, default: Any) -> str:
    if isinstance(default, list) and all(isinstance(entry, str) for entry in default):
        default = ", ".join(default)
    if default in (None, "") or "default:" in description:
        return ""
    return f" (default: {str(default).lower() if isinstance(default, bool) else default})"


def _describe_unknown(words: Sequence[str]) -> Iterator[str]:
    """Yield a line for each unknown flag, and for each argument that is not the value of a flag."""
    known = [key for key, _ in keys()]
    previous = ""
    for word in words:
        flag, equals, _ = word.partition("=")
        if word.startswith("--") and word != "--":
            yield f"{flag}: unknown flag{hint(flag[2:], known)}"
        elif not previous:
            yield f"{word!r}: not a flag; flags look like --section.name=value"
        previous = word if word.startswith("--") and not equals else ""


def _drop_overridden(tree: dict[str, Any], flags: Iterable[str]) -> None:
    """Drop settings of the file that a flag overrides under a different name.

    `--model.rope=true` overrides `positions: learned`.
    """
    for section, groups in (("model", SHORT_FORMS.items()), ("trainer", optimization.TOGETHER)):
        for deciding, *following in groups:
            if any(f"{section}.{name}" in flags for name in (deciding, following[0])):
                for name in (deciding, *following):
                    tree.get(section, {}).pop(name, None)
