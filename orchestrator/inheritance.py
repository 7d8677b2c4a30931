"""From experiment files to one tree: inheritance, dotted keys, `--set`, variables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from orchestrator import yamlfile
from orchestrator.expressions import Variables
from orchestrator.yamlfile import KeyPath, Tree
from trainer.config import keys, nearest
from trainer.errors import ConfigError, UserError

Overrides = dict[str, Any]  # dotted trainer key -> value


def read(path: Path, chain: tuple[Path, ...] = ()) -> Tree:
    """The file deep-merged over the ones it extends. Raises UserError or ConfigError."""
    real = path.resolve()
    if real in chain:
        cycle = " -> ".join(p.name for p in (*chain[chain.index(real) :], real))
        raise UserError(f"{path}: extends itself: {cycle}")
    tree = _flattened(yamlfile.load(path))
    parents = tree.data.get("extends")
    if parents is None:
        return tree
    names = parents if isinstance(parents, list) else [parents]
    merged = Tree({})
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"{tree.position(('extends',))}: extends: must be a file name or a list of them")
        name = str(Variables(_plain_vars(tree)).fill(name))
        parent = path.parent / name
        if not parent.is_file():
            raise UserError(f"{tree.position(('extends',))}: extends: {parent}: no such file")
        merged = _merge(merged, read(parent, (*chain, real)))
    return _merge(merged, tree)


def _plain_vars(tree: Tree) -> dict[str, Any]:
    values = tree.data.get("vars")
    return values if isinstance(values, dict) else {}


def _merge(below: Tree, above: Tree) -> Tree:
    """Deep merge of mappings; `above` wins, lists and scalars are replaced whole."""

    def deep(low: Any, high: Any) -> Any:
        if isinstance(low, dict) and isinstance(high, dict):
            return {**low, **{key: deep(low[key], value) if key in low else value for key, value in high.items()}}
        return high

    return Tree(deep(below.data, above.data), {**below.where, **above.where})


def _flattened(tree: Tree) -> Tree:
    """Nested trainer settings (under base and each feature) as dotted keys, so that both spellings merge alike."""
    problems: list[str] = []

    def flat(value: Any, path: KeyPath, prefix: str, found: dict[str, Any], root: KeyPath) -> None:
        for key, inner in value.items():
            dotted = f"{prefix}.{key}" if prefix else key
            if isinstance(inner, dict) and inner and dotted.count(".") < 1:
                flat(inner, (*path, key), dotted, found, root)
                continue
            if dotted in found:
                problems.append(f"{tree.position((*path, key))}: {'.'.join((*root, dotted))}: duplicate key")
            found[dotted] = inner
            tree.where[(*root, dotted)] = tree.position((*path, key))

    def flatten(container: dict[str, Any], key: str, root: KeyPath) -> None:
        if isinstance(container.get(key), dict):
            found: dict[str, Any] = {}
            flat(container[key], root, "", found, root)
            container[key] = found

    flatten(tree.data, "base", ("base",))
    features = tree.data.get("features")
    for name, body in features.items() if isinstance(features, dict) else ():
        assert isinstance(features, dict)
        if isinstance(body, dict) and set(body) == {"levels"} and isinstance(body["levels"], dict):
            for level in body["levels"]:
                flatten(body["levels"], level, ("features", name, "levels", level))
        else:
            flatten(features, name, ("features", name))
    if problems:
        raise ConfigError(problems)
    return tree


def apply_sets(tree: Tree, sets: Iterable[str], top_level: Sequence[str]) -> Overrides:
    """Put `--set` into the tree; trainer keys are returned, because they must win over features too."""
    trainer_keys = [key for key, _ in keys()]
    forced: Overrides = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: write --set key=value, for instance --set trainer.max_iters=100")
        section, dot, rest = key.partition(".")
        if key in trainer_keys:
            forced[key] = yamlfile.parse_scalar(value)
            tree.where[("base", key)] = "--set"
        elif key in top_level and not dot and key != "extends":
            tree.data[key] = yamlfile.parse_scalar(value)
            tree.where[(key,)] = "--set"
        elif section in ("vars", "slurm") and dot and isinstance(tree.data.setdefault(section, {}), dict):
            tree.data[section][rest] = yamlfile.parse_scalar(value)
            tree.where[(section, rest)] = "--set"
        else:
            raise UserError(f"--set {key}: unknown key{nearest(key, [*trainer_keys, *top_level])}")
    return forced


def fill(tree: Tree, problems: list[str]) -> dict[str, Any]:
    """The tree's data with all `${...}` replaced; each expression that fails is a problem of its own."""
    variables = Variables(_plain_vars(tree))

    def filled(value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner, (*path, key)) for key, inner in value.items()}
        try:
            return variables.fill(value)
        except UserError as error:
            problems.append(f"{tree.position(path)}: {'.'.join(path)}: {error}")
            return value

    data = filled({key: value for key, value in tree.data.items() if key != "vars"}, ())
    if problems:
        raise ConfigError(problems)
    return data
