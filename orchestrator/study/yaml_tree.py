"""Read YAML with the file and line of each key, so that errors can name them.

Scalars follow YAML 1.2's core schema (`5e-4` is a float, `on` and `no` are strings), duplicate keys are errors, and
documents whose aliases expand to an unreasonable size are rejected.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ablatrix.orchestrator.study import find_file, yaml_errors
from ablatrix.orchestrator.study.literals import keep_spelling
from ablatrix.trainer.config.yaml_core import PATTERNS, TAGS, CoreLoader
from ablatrix.trainer.rundir.errors import ConfigError, UserError
from ablatrix.trainer.rundir.files import open_for_reading

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
MAX_DEPTH = 50

KeyPath = tuple[str, ...]


@dataclass
class Tree:
    """A YAML document as plain Python values, and the `file:line` of each key path."""

    data: dict[str, Any]
    where: dict[KeyPath, str] = field(default_factory=dict)

    def below(self, *root: str) -> Tree:
        """Return the mapping at `root` as a tree with the same positions; empty for a key without a value."""
        where = {path[len(root) :]: at for path, at in self.where.items() if path[: len(root)] == root and path != root}
        return Tree(self.get(root) or {}, where)

    def position(self, path: KeyPath) -> str:
        """Return `file:line` of a key, or of its nearest parent that has one."""
        while path and path not in self.where:
            path = path[:-1]
        return self.where.get(path, "")

    def get(self, path: KeyPath) -> Any:
        """Return the value of a key, None if there is none."""
        value: Any = self.data
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def load(path: Path) -> Tree:
    """Return the YAML mapping in a file. Raise UserError, or ConfigError for duplicate keys."""
    text = _read(path)
    node = _compose(path, text)
    if node is None:
        raise UserError(f"{path}: the file is empty; an experiment needs at least name, base and features")
    builder = _Builder(str(path))
    data = builder.build(node, ())
    if builder.problems:
        raise ConfigError(builder.problems)
    if not isinstance(data, dict):
        line, why = yaml_errors.explain_no_mapping(text)
        raise UserError(f"{path}:{line}: {why}")
    return Tree(data, builder.where)


def _compose(path: Path, text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=CoreLoader)
    except yaml.MarkedYAMLError as error:
        line, why = yaml_errors.explain(error, text)
        raise UserError(f"{path}:{line}: not valid YAML: {why}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        code = ord(error.character) if isinstance(error.character, str) else error.character
        raise UserError(f"{path}:{line}: not valid YAML: a control character (U+{code:04X}); delete it") from None
    except RecursionError:
        raise UserError(f"{path}: lists or mappings are nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def parse_scalar(text: str) -> Any:
    """Parse a value as if read from a file: `true`, `5e-4`, `[1, 2]`, `word`. Raise UserError if invalid."""
    shown = text if len(text) < 80 else f"{text[:80]}..."
    try:
        node = yaml.compose(text, Loader=CoreLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"{shown!r}: not a YAML value; quote strings with special characters") from None
    builder = _Builder("value")
    value = None if node is None else builder.build(node, ())
    if builder.problems:
        raise ConfigError(builder.problems)
    return value


def parse_or_text(text: str) -> Any:
    """Parse text as a number, boolean, null, list or mapping; return anything else unchanged."""
    plain = text.strip()
    if plain[:1] not in ("[", "{", "'", '"') and not any(p.match(plain) for p in PATTERNS.values()):
        return text
    try:
        return parse_scalar(plain) if plain else text
    except UserError:  # text that merely begins like a list
        return text


def _read(path: Path) -> str:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; give the experiment's YAML file")
        with open_for_reading(path) as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.y*ml"))[:8] if path.parent.is_dir() else []
        hint = f"; {path.parent} has: {', '.join(near)}" if near else ""
        raise UserError(f"{path}: no such experiment file{hint}{find_file.list_search_path()}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read {str(path)!r}: {reason}") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"{path}: larger than 1 MiB; this is not an experiment file")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(f"{path}: UTF-16 text, as PowerShell and Notepad write it; save the file as UTF-8")
    try:
        return _without_tabs(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None


def _without_tabs(text: str) -> str:
    """Replace tabs, which are allowed as indentation in JSON but not in YAML; line numbers stay the same."""
    if not text.lstrip().startswith("{") or "\t" not in text:
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text.replace("\t", " ")


class _Builder:
    """Turns composed nodes into Python values, and records positions and duplicate keys."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.where: dict[KeyPath, str] = {}
        self.problems: list[str] = []
        self.nodes = 0

    def build(self, node: yaml.Node, path: KeyPath, depth: int = 0) -> Any:
        self.nodes += 1
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise UserError(f"{self.name} expands to an unreasonable size; check its aliases (*name) and nesting")
        line = node.start_mark.line + 1
        try:
            if isinstance(node, yaml.ScalarNode):
                return self._scalar(node, path)
            if node.tag not in (f"{TAGS}map", f"{TAGS}seq"):
                raise ValueError(_unsupported(node.tag))
        except ValueError as error:
            raise UserError(f"{self.name}:{line}: {error}") from None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        return [self.build(child, (*path, str(i)), depth + 1) for i, child in enumerate(node.value)]

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        value = _scalar(node)
        if isinstance(value, str) and node.style is None and path[:1] != ("experiment_info",):
            odd = yaml_errors.typographic(value)
            if odd:
                self.problems.append(f"{self.name}:{node.start_mark.line + 1}: {'.'.join(path)}: {odd}")
        return value

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = self._key(key_node)
            if key == "<<" and key_node.style is None:
                if merged:
                    self.problems.append(f"{self.name}:{line}: a second `<<`; write one list: `<<: [*a, *b]`")
                merged = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            if key in mapping:
                first = self.where[(*path, key)]
                self.problems.append(f"{self.name}:{line}: {'.'.join((*path, key))}: duplicate key (first at {first})")
            self.where[(*path, key)] = f"{self.name}:{line}"
            mapping[key] = self.build(value_node, (*path, key), depth + 1)
        for below in merged:
            self._merge(mapping, below, path, depth)
        return mapping

    def _merge(self, mapping: dict[str, Any], node: yaml.Node, path: KeyPath, depth: int) -> None:
        """Add the keys of `<<`, one level deep: the mapping's own keys win, then the first item in the list."""
        line = node.start_mark.line + 1
        if isinstance(node, yaml.ScalarNode) and node.tag == f"{TAGS}null":
            return
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{self.name}:{line}: `<<` merges mappings: `<<: *name` or `<<: [*a, *b]`")
        where, self.where = self.where, {}
        merged = self.build(node, path, depth + 1)
        added = {at: place for at, place in self.where.items() if at[len(path)] not in mapping}
        self.where = where | added
        mapping.update({key: value for key, value in merged.items() if key not in mapping})

    def _key(self, node: yaml.Node) -> str:
        at = f"{self.name}:{node.start_mark.line + 1}"
        if not isinstance(node, yaml.ScalarNode):
            hint = "; quote values with {{ }}" if isinstance(node, yaml.MappingNode) else ""
            raise UserError(f"{at}: keys must be strings, not lists or mappings{hint}")
        try:
            key = _text(node.value)
        except ValueError as error:
            raise UserError(f"{at}: {error}") from None
        odd = (yaml_errors.odd_character(key) or yaml_errors.typographic(key)) if node.style is None else ""
        if odd:
            raise UserError(f"{at}: {key!r}: {odd}")
        return key


def _unsupported(tag: str) -> str:
    shown = tag.replace(TAGS, "!!")
    return f"the tag {shown} is not supported in an experiment file; quote a value that begins with !"


def _scalar(node: yaml.ScalarNode) -> Any:
    """Return the value of a scalar. Raise ValueError if it does not fit its tag."""
    kind = node.tag.removeprefix(TAGS)
    text = node.value
    if kind == "str":
        return _text(text)
    if kind not in PATTERNS:
        raise ValueError(_unsupported(node.tag))
    if not PATTERNS[kind].match(text):
        raise ValueError(f"{text[:80]!r} is not of the type {kind}")
    if kind == "bool":
        return keep_spelling(text.lower() == "true", text)
    if kind == "null":
        return None
    if kind == "int":
        value = int(text, 0 if text.lstrip("+-")[:2] in ("0o", "0x") else 10)
        return keep_spelling(value, text)
    return keep_spelling(float(text.lower().replace(".inf", "inf").replace(".nan", "nan")), text)


def _text(text: str) -> str:
    """Decode the surrogate pairs of JSON's escapes. Raise ValueError for a lone surrogate."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16")
