"""YAML with positions: every key knows its file and line, so that an error can say where it is.

Scalars follow YAML 1.2's core schema (`5e-4` is a float, `on` and `no` are words), duplicate keys are errors, and
documents that would unfold beyond reason (alias bombs, endless nesting) are refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from orchestrator import locate
from trainer import runlog
from trainer.errors import ConfigError, UserError

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 50
LARGEST_INT = 2**64
TAGS = "tag:yaml.org,2002:"

KeyPath = tuple[str, ...]


@dataclass
class Tree:
    """A YAML document as plain Python values, and for each key path the `file:line` it stands at."""

    data: dict[str, Any]
    where: dict[KeyPath, str] = field(default_factory=dict)

    def below(self, *root: str) -> Tree:
        """The mapping at `root` as a tree of its own, its keys where they are. A key without a value: an empty one."""
        value: Any = self.data
        for key in root:
            value = value[key]
        where = {path[len(root) :]: at for path, at in self.where.items() if path[: len(root)] == root and path != root}
        return Tree({} if value is None else value, where)

    def position(self, path: KeyPath) -> str:
        """`file:line` of a key, or of its nearest parent that has one."""
        while path and path not in self.where:
            path = path[:-1]
        return self.where.get(path, "")


class _CoreLoader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's implicit types in place of 1.1's."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own attribute)
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Counts: the rest of a file that is too large anyway need not be read."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES:,} values; this is not an experiment file")
        return super().compose_node(parent, index)


_PATTERNS: dict[str, re.Pattern[str]] = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _PATTERNS[_tag] = re.compile(f"^(?:{_pattern})\\Z")
    _CoreLoader.add_implicit_resolver(f"{TAGS}{_tag}", _PATTERNS[_tag], list(_first))


def load(path: Path) -> Tree:
    """Read a YAML mapping. Raises UserError (no such file, not UTF-8, not YAML) or ConfigError (duplicate keys)."""
    text = _read(path)
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not valid YAML: {error.problem or error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be an experiment") from None
    if node is None:
        raise UserError(f"{path}: the file is empty; an experiment needs at least name, base and features")
    builder = _Builder(str(path))
    data = builder.build(node, ())
    if builder.problems:
        raise ConfigError(builder.problems)
    if not isinstance(data, dict):
        raise UserError(f"{path}: the top level must be keys and values, such as `name: my-study`")
    return Tree(data, builder.where)


def parse_scalar(text: str) -> Any:
    """A value as it would be read from a file: `true`, `5e-4`, `[1, 2]`, `word`. Raises UserError when not YAML."""
    shown = text if len(text) < 80 else f"{text[:80]}..."
    if len(text) > MAX_BYTES:
        raise UserError(f"{shown!r}: longer than 1 MiB; this is not a value")
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"{shown!r}: not a YAML value") from None
    builder = _Builder("value")
    value = None if node is None else builder.build(node, ())
    if builder.problems:
        raise ConfigError(builder.problems)
    return value


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; give the experiment's YAML file")
        with runlog.opened(path) as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml"))[:8] if path.parent.is_dir() else []
        hint = f"; {path.parent} has: {', '.join(near)}" if near else ""
        raise UserError(f"{path}: no such experiment file{hint}{locate.elsewhere()}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{str(path)!r}: cannot be read: {reason}") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"{path}: larger than 1 MiB; this is not an experiment file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None


class _Builder:
    """Turns composed nodes into Python values, noting positions and duplicate keys."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.where: dict[KeyPath, str] = {}
        self.problems: list[str] = []
        self.nodes = 0
        self.constructor = _CoreLoader("")

    def build(self, node: yaml.Node, path: KeyPath, depth: int = 0) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise UserError(f"{self.name}: unfolds to an unreasonable size; check its aliases (*name) and nesting")
        line = node.start_mark.line + 1
        try:
            if isinstance(node, yaml.ScalarNode):
                return _scalar(node)
            if node.tag not in (f"{TAGS}map", f"{TAGS}seq"):
                raise ValueError(f"tag {node.tag!r} is not supported in an experiment file")
        except ValueError as error:
            raise UserError(f"{self.name}:{line}: {error}") from None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        return [self.build(child, (*path, str(i)), depth + 1) for i, child in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{self.name}:{line}: a key must be a word, not a list or mapping")
            try:
                key = _text(key_node.value)
            except ValueError as error:
                raise UserError(f"{self.name}:{line}: {error}") from None
            if key == "<<" and key_node.style is None:
                raise UserError(f"{self.name}:{line}: `<<` merges nothing here; use `extends:` with another file")
            if key in mapping:
                first = self.where[(*path, key)]
                self.problems.append(f"{self.name}:{line}: {'.'.join((*path, key))}: duplicate key (first at {first})")
            self.where[(*path, key)] = f"{self.name}:{line}"
            mapping[key] = self.build(value_node, (*path, key), depth + 1)
        return mapping


def _scalar(node: yaml.ScalarNode) -> Any:
    """The value of a scalar. Raises ValueError for one that is not of its tag, or that nothing could hold."""
    kind = node.tag.removeprefix(TAGS)
    text = node.value
    if kind == "str":
        return _text(text)
    if kind not in _PATTERNS:
        raise ValueError(f"tag {node.tag!r} is not supported in an experiment file")
    if not _PATTERNS[kind].match(text):
        raise ValueError(f"{text[:80]!r} is not of the type {kind}")
    if kind == "bool":
        return text.lower() == "true"
    if kind == "null":
        return None
    if kind == "int":
        digits = text.lstrip("+-")
        value = int(text, 0 if digits[:2] in ("0o", "0x") else 10) if len(text) < 100 else LARGEST_INT
        if abs(value) >= LARGEST_INT:
            raise ValueError(f"{text[:30]}: a whole number of more than 64 bits")
        return value
    return float(text.replace(".inf", "inf").replace(".Inf", "inf").replace(".INF", "inf").replace(".nan", "nan"))


def _text(text: str) -> str:
    """The text with the surrogate pairs of JSON's escapes as characters. Raises ValueError for half of one."""
    try:
        return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError("half of a surrogate pair, which is no character") from None
