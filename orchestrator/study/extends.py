"""From experiment files to one tree: inheritance, dotted keys, `--set`, variables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.study import dotted, find_file, secrets, yaml_tree
from ablatrix.orchestrator.study.find_file import Source
from ablatrix.orchestrator.study.interpolation import Variables
from ablatrix.orchestrator.study.yaml_tree import KeyPath, Position, Tree, Written
from ablatrix.trainer.config import keys
from ablatrix.trainer.config.field_errors import show
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.rundir.errors import ConfigError, UserError

CONFIGS = "configs"
PRIVATE = "x-"  # begins a key of the top level that only holds anchors


Overrides = dict[str, Any]  # dotted trainer key -> value
Given = dict[str, Written]  # what `--set` says


@dataclass
class Known:
    """What was read for one experiment: its parents may stand on the same file, or be configs of one."""

    trees: dict[Source, Tree] = field(default_factory=dict)
    files: dict[Path, Tree] = field(default_factory=dict)

    def file(self, path: Path) -> Tree:
        """A file as it stands, not to be changed."""
        if path not in self.files:
            self.files[path] = yaml_tree.load(path)
            secrets.refuse_secrets(self.files[path])
        return self.files[path]


def read(
    source: Source, given: Given | None = None, chain: tuple[Source, ...] = (), known: Known | None = None
) -> Tree:
    """The file, or the config in it, deep-merged over what it extends. Raises UserError or ConfigError.

    given: `vars` of the command line, which may choose what is extended. A config stands on the top level of its file,
    then on what it extends; the others of the file can be extended by their names.
    """
    identity = Source(source.path.resolve(), source.config)
    if identity in chain:
        cycle = " -> ".join(_short(link) for link in (*chain[chain.index(identity) :], identity))
        raise UserError(f"{source}: extends itself: {cycle}")
    known = known or Known()
    if identity in known.trees:
        return known.trees[identity]
    whole = known.file(source.path)
    configs = configs_of(whole)
    chain = (*chain, identity)
    if source.config is None:
        top = {key: value for key, value in whole.data.items() if key != CONFIGS and not key.startswith(PRIVATE)}
        own, merged = _flattened(Tree(top, whole.where)), Tree({})
    else:
        merged = read(Source(source.path), given, chain, known)
        own = _flattened(_config(whole, configs, source, merged.data.get("name")))
    variables = _variables(merged, own, given=given)
    for parent in _parents(own, source.path, configs, variables, known):
        merged = _merge(merged, read(parent, given, chain, known))
    known.trees[identity] = _merge(merged, own)
    return known.trees[identity]


def _short(source: Source) -> str:
    return str(Source(Path(source.path.name), source.config))


def configs_of(whole: Tree) -> list[str]:
    """Names of the configs that a file holds. Raises UserError."""
    configs = whole.data.get(CONFIGS)
    if configs is None:
        return []
    if not isinstance(configs, dict):
        raise UserError(f"{whole.position((CONFIGS,))}: {CONFIGS}: must be names, each with settings of its own below")
    for name, body in configs.items():
        where = f"{whole.position((CONFIGS, name))}: {CONFIGS}.{name}: "
        if not isinstance(body, dict | None):
            raise UserError(f"{where}must be settings, such as `base: {{model.model_type: gpt2}}`")
        if body and CONFIGS in body:
            raise UserError(f"{where}cannot hold configs itself; give them side by side, and `extends: {name}`")
    return list(configs)


def _config(whole: Tree, configs: list[str], source: Source, study: Any) -> Tree:
    """A config's own settings. Raises UserError for a name that is not there.

    study: the name at the top of the file. Two configs of a file are two studies: one that says no name of its own is
    called <study>-<config>.
    """
    name = str(source.config)
    if name not in configs:
        raise UserError(_unknown(source, configs))
    below = whole.below(CONFIGS, name)
    tree = Tree({key: value for key, value in below.data.items() if not key.startswith(PRIVATE)}, below.where)
    if "name" not in tree.data:
        tree.data["name"] = f"{study}-{name}" if isinstance(study, str) else name
        tree.where[("name",)] = whole.position((CONFIGS, name))
    return tree


def _unknown(source: Source, configs: list[str]) -> str:
    known = f"configs: {', '.join(configs)}" if configs else f"the file has no `{CONFIGS}:`"
    return f"{source.path}: no config {source.config!r}{nearest(str(source.config), configs)}; {known}"


def _parents(tree: Tree, path: Path, configs: list[str], variables: Variables, known: Known) -> list[Source]:
    """What `extends` names, in its order. Raises UserError."""
    value = tree.data.get("extends")
    where = f"{tree.position(('extends',))}: extends: "
    found = []
    for name in value if isinstance(value, list) else [value] if value is not None else []:
        if not isinstance(name, str):
            raise UserError(f"{where}must be a file name or a list of them")
        try:
            name = str(variables.fill(name))
        except UserError as error:
            raise UserError(f"{where}{error}") from None
        source = Source(path, name) if name in configs else find_file.find(name, path.parent)
        if source is None:
            here = f", and no config of this file{nearest(name, configs)}" if configs else ""
            raise UserError(
                f"{where}{path.parent / find_file.meant(name).path}: no such file{here}{find_file.elsewhere()}"
            )
        if source.config is not None and source.path != path:
            there = configs_of(known.file(source.path))
            if source.config not in there:
                raise UserError(f"{where}{_unknown(source, there)}")
        found.append(source)
    return found


def plain_vars(tree: Tree) -> dict[str, Any]:
    """The tree's `vars` as they were written."""
    values = tree.data.get("vars")
    return values if isinstance(values, dict) else {}


def _variables(*trees: Tree, given: Given | None = None) -> Variables:
    """The variables of the trees, later ones winning, then those of the command line."""
    values: Overrides = {}
    written: Overrides = {}
    for tree in trees:
        values |= plain_vars(tree)
        written |= {name: tree.written(("vars", name)) for name in plain_vars(tree)}
    for name, (value, text) in (given or {}).items():
        values[name], written[name] = value, text
    return Variables(values, written=written)


def _merge(below: Tree, above: Tree) -> Tree:
    """Deep merge of mappings; `above` wins, lists and scalars are replaced whole."""

    def deep(low: Any, high: Any, path: KeyPath) -> Any:
        if not (isinstance(low, dict) and isinstance(high, dict)):
            return high
        if _holds_settings(path, low, high):
            return _without_removed(low, dotted.override(low, high), high)
        return {
            **low,
            **{key: deep(low[key], value, (*path, key)) if key in low else value for key, value in high.items()},
        }

    data = deep(below.data, above.data, ())
    for section in ("features", "cells"):  # `rope: null` above takes an inherited one away
        low, high = below.data.get(section), data.get(section)
        if isinstance(low, dict) and isinstance(high, dict):
            data[section] = {name: body for name, body in high.items() if body is not None or name not in low}
    return Tree(data, {**below.where, **above.where})


def _holds_settings(path: KeyPath, *blocks: dict[str, Any]) -> bool:
    """True for what `_flattened` has flattened: base, a feature, a level of one."""
    if path == ("base",) or (len(path) == 4 and path[0] == "features" and path[2] == "levels"):
        return True
    return len(path) == 2 and path[0] == "features" and not any(_levels_of(block) for block in blocks)


def _without_removed(low: Overrides, merged: Overrides, high: Overrides) -> Overrides:
    """The merged settings without each `section: null` that has taken an inherited section away."""
    sections = {parent for key in low for parent in dotted.parents(key)}
    return {key: value for key, value in merged.items() if not (key in high and value is None and key in sections)}


def _levels_of(body: Any) -> dict[str, Any] | None:
    """The levels of a feature that has some."""
    levels = body.get("levels") if isinstance(body, dict) and set(body) == {"levels"} else None
    return levels if isinstance(levels, dict) else None


def _flattened(tree: Tree) -> Tree:
    """Nested settings (under base and each feature) as dotted keys, so that both spellings merge alike."""
    problems: list[str] = []
    tree = Tree(_copied(tree.data), dict(tree.where))

    def flatten(container: dict[str, Any], key: str, root: KeyPath) -> None:
        if not isinstance(container.get(key), dict):
            return
        found: dict[str, Any] = {}
        for path, value in dotted.leaves(container[key]):
            name, position = ".".join(path), tree.position((*root, *path))
            if name in found:
                problems.append(f"{position}: {'.'.join((*root, name))}: duplicate key")
            found[name] = value
            tree.where[(*root, name)] = position
        container[key] = found

    flatten(tree.data, "base", ("base",))
    features = tree.data.get("features")
    if isinstance(features, dict):
        for name, body in features.items():
            levels = _levels_of(body)
            if levels is None:
                flatten(features, name, ("features", name))
            for level in levels or ():
                flatten(levels or {}, level, ("features", name, "levels", level))
    if problems:
        raise ConfigError(problems)
    return tree


def _copied(data: dict[str, Any]) -> dict[str, Any]:
    """The data, with containers of its own where `_flattened` puts other values into them."""
    features = data.get("features")
    if not isinstance(features, dict):
        return dict(data)
    bodies = {name: body.copy() if isinstance(body, dict) else body for name, body in features.items()}
    for body in bodies.values():
        if isinstance(body, dict) and isinstance(body.get("levels"), dict):
            body["levels"] = dict(body["levels"])
    return {**data, "features": bodies}


def parse_sets(sets: Iterable[str]) -> Given:
    """`key=value` texts of the command line, in order. Raises UserError."""
    parsed: Given = {}
    for text in sets:
        key, equals, value = text.partition("=")
        secrets.refuse_set(key, value)  # before any message that repeats it
        if not equals:
            raise UserError(f"--set {text}: write --set key=value, for instance --set trainer.max_iters=100")
        parsed[key] = yaml_tree.parse_written(value)
        secrets.refuse_set(key, parsed[key].value)
    return parsed


def apply_sets(tree: Tree, sets: Given, top_level: Sequence[str]) -> Overrides:
    """Put `--set` into the tree; trainer keys are returned, because they must win over features too."""
    trainer_keys = [key for key, _ in keys()] if tree.data.get("command") is None else _free_keys(tree)
    forced: Overrides = {}
    for key, (value, written) in sets.items():
        section, dot, rest = key.partition(".")
        position = Position("--set", written)
        if key in trainer_keys:
            forced[key] = value
            tree.where[("base", key)] = position
        elif key in ("extends", CONFIGS):
            raise UserError(
                f"--set {key}: cannot be given here; choose a config with FILE#NAME, or write "
                "`extends: ${site}.yaml` into the file and give --set vars.site=..."
            )
        elif key in top_level and not dot:
            tree.data[key] = value
            tree.where[(key,)] = position
            tree.data = _flattened(tree).data
        elif (
            section in ("vars", "slurm", "experiment_info")
            and dot
            and isinstance(tree.data.setdefault(section, {}), dict)
        ):
            tree.data[section][rest] = value
            tree.where[(section, rest)] = position
        else:
            raise UserError(f"--set {key}: unknown key{nearest(key, [*trainer_keys, *top_level])}")
    try:
        variables = _variables(tree)
        for key, value in forced.items():
            written = variables.written(value, sets[key].written)
            tree.where[("base", key)] = Position("--set", written)
        return {key: variables.fill(value) for key, value in forced.items()}
    except UserError as error:
        raise UserError(f"--set: {error}") from None


def _free_keys(tree: Tree) -> list[str]:
    """The settings of a command that the file names, with dotted keys."""
    blocks = [tree.data.get("base")]
    features = tree.data.get("features")
    for body in features.values() if isinstance(features, dict) else ():
        levels = _levels_of(body)
        blocks += [body] if levels is None else levels.values()
    return list(dict.fromkeys(key for block in blocks if isinstance(block, dict) for key in block))


def fill(tree: Tree, problems: list[str]) -> dict[str, Any]:
    """Return the tree's data with all `${...}` replaced; each expression that fails is added to `problems`.

    Raises ConfigError if a value becomes a secret.
    """
    variables = _variables(tree)
    escaped = secrets.escaped_names(tree.data)
    found: list[str] = []

    def filled(value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner, (*path, key)) for key, inner in value.items()}
        try:
            full = variables.fill(value)
        except UserError as error:
            problems.append(f"{tree.position(path)}: {'.'.join(path)}: {error}")
            return value
        if full != value:
            found.extend(secrets.find_secrets(tree, full, path, escaped))
        if path in tree.where:
            tree.where[path] = Position(tree.where[path], variables.written(value, tree.written(path)))
        return full

    values = tree.data.get("vars")
    if not isinstance(values, dict | None):
        problems.append(f"{tree.position(('vars',))}: vars: must be names with values, found {show(values)}")
    data = filled({key: value for key, value in tree.data.items() if key != "vars"}, ())
    secrets.refuse(found)
    return data
