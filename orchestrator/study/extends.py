"""Read an experiment file and deep-merge it over the files and configs that it extends."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.study import dotted, find_file, secrets, yaml_tree
from ablatrix.orchestrator.study.find_file import Source
from ablatrix.orchestrator.study.interpolation import Variables, vars_of
from ablatrix.orchestrator.study.levels import settings_blocks
from ablatrix.orchestrator.study.yaml_tree import KeyPath, Tree
from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.rundir.errors import ConfigError, UserError

CONFIGS = "configs"
PRIVATE = "x-"  # prefix of top-level keys that only contain anchors

Overrides = dict[str, Any]  # dotted key -> value


class Reader:
    """Reads the files of one experiment, each once.

    variables: `vars` from the command line, which may select what is extended.
    """

    def __init__(self, variables: dict[str, Any]) -> None:
        self._variables = variables
        self._files: dict[Path, Tree] = {}
        self._merged: dict[Source, Tree] = {}

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that have been read."""
        return tuple(self._files)

    def file(self, path: Path) -> Tree:
        """Return a file as written. Raise UserError or ConfigError."""
        if path not in self._files:
            tree = yaml_tree.load(path)
            secrets.refuse_secrets(tree)
            self._files[path] = tree
        return self._files[path]

    def read(self, source: Source, chain: tuple[Source, ...] = ()) -> Tree:
        """Return a file, or a config in it, merged over what it extends. Raise UserError or ConfigError.

        A config overrides what it extends, which overrides the top level of the config's file.
        """
        identity = Source(source.path.resolve(), source.config)
        if identity in chain:
            cycle = " -> ".join(_short(link) for link in (*chain[chain.index(identity) :], identity))
            raise UserError(f"{source} extends itself: {cycle}")
        if identity in self._merged:
            return self._merged[identity]
        chain = (*chain, identity)
        whole = self.file(source.path)
        configs = configs_of(whole)
        if source.config is None:
            merged, own = Tree({}), _without_private(whole, CONFIGS)
        else:
            merged = self.read(Source(source.path), chain)
            own = _config(whole, configs, source, merged.data.get("name"))
        own = flatten_settings(own)
        for parent in self._parents(merged, own, source.path, configs):
            merged = _merge(merged, self.read(parent, chain))
        self._merged[identity] = _merge(merged, own)
        return self._merged[identity]

    def _parents(self, below: Tree, own: Tree, path: Path, configs: list[str]) -> list[Source]:
        """Return the sources listed under `extends`, in order. Raise UserError."""
        variables = Variables({**vars_of(below), **vars_of(own), **self._variables})
        value = own.data.get("extends")
        names = value if isinstance(value, list) else [value] if value is not None else []
        try:
            return [self._parent(name, variables, path, configs) for name in names]
        except UserError as error:
            raise UserError(f"{own.position(('extends',))}: extends: {error}") from None

    def _parent(self, name: Any, variables: Variables, path: Path, configs: list[str]) -> Source:
        if not isinstance(name, str):
            raise UserError("must be a file name or a list of them")
        name = str(variables.fill(name))
        source = Source(path, name) if name in configs else find_file.find(name, path.parent)
        if source is None:
            here = f", and no config of this file{nearest(name, configs)}" if configs else ""
            raise UserError(
                f"{path.parent / find_file.read_name(name).path}: no such file{here}{find_file.list_search_path()}"
            )
        if source.config is not None and source.path != path:
            _refuse_unknown(source, configs_of(self.file(source.path)))
        return source


def _short(source: Source) -> str:
    return str(Source(Path(source.path.name), source.config))


def configs_of(whole: Tree) -> list[str]:
    """Return the names of the configs in a file. Raise UserError."""
    configs = whole.data.get(CONFIGS)
    if configs is None:
        return []
    if not isinstance(configs, dict):
        raise UserError(f"{whole.position((CONFIGS,))}: {CONFIGS}: must be a mapping of names to settings")
    for name, body in configs.items():
        where = f"{whole.position((CONFIGS, name))}: {CONFIGS}.{name}: "
        if not isinstance(body, dict | None):
            raise UserError(f"{where}must be a mapping, such as `base: {{model.model_type: gpt2}}`")
        if any(str(key).partition(".")[0] in RunConfig.model_fields for key in body or ()):
            raise UserError(
                f"{where}a config is a study of its own, with its settings under `base:`; variants to compare within "
                "one study are `features`"
            )
        if body and CONFIGS in body:
            raise UserError(f"{where}configs cannot be nested; list them side by side, with `extends: {name}`")
    return list(configs)


def _config(whole: Tree, configs: list[str], source: Source, study: Any) -> Tree:
    """Return the config's own content. Raise UserError if it does not exist.

    study: the name at the top of the file. Each config is a study: without a name, it is called <study>-<config>.
    """
    _refuse_unknown(source, configs)
    name = str(source.config)
    tree = _without_private(whole.below(CONFIGS, name))
    if "name" not in tree.data:
        tree.data["name"] = f"{study}-{name}" if isinstance(study, str) else name
        tree.where[("name",)] = whole.position((CONFIGS, name))
    return tree


def _refuse_unknown(source: Source, configs: list[str]) -> None:
    if source.config not in configs:
        known = f"configs: {', '.join(configs)}" if configs else f"the file has no `{CONFIGS}:`"
        raise UserError(f"{source.path}: no config {source.config!r}{nearest(str(source.config), configs)}; {known}")


def _without_private(tree: Tree, *names: str) -> Tree:
    data = {key: value for key, value in tree.data.items() if key not in names and not key.startswith(PRIVATE)}
    return Tree(data, tree.where)


def flatten_settings(tree: Tree) -> Tree:
    """Return a copy of the tree with dotted keys in base and features, so that both spellings merge the same way.

    Raise ConfigError for a setting given in both spellings.
    """
    tree, problems = Tree(copy.deepcopy(tree.data), dict(tree.where)), []
    for path, block in settings_blocks(tree.data):
        if not isinstance(block, dict):
            continue
        flat: dict[str, Any] = {}
        for keys, value in dotted.leaves(block):
            key, position = ".".join(keys), tree.position((*path, *keys))
            if key in flat:
                problems.append(f"{position}: {'.'.join((*path, key))}: duplicate key")
            flat[key] = value
            tree.where[(*path, key)] = position
        parent = tree.get(path[:-1])
        parent[path[-1]] = flat
    if problems:
        raise ConfigError(problems)
    return tree


def _merge(below: Tree, above: Tree) -> Tree:
    """Deep-merge mappings; `above` wins and replaces lists and scalars entirely."""
    blocks = {path for path, _ in settings_blocks(below.data)} & {path for path, _ in settings_blocks(above.data)}

    def merge(low: Any, high: Any, path: KeyPath) -> Any:
        if not (isinstance(low, dict) and isinstance(high, dict)):
            return high
        if path in blocks:
            return _merge_settings(low, high)
        merged = low | {
            key: merge(low[key], value, (*path, key)) if key in low else value for key, value in high.items()
        }
        if path in (("features",), ("cells",)):  # `rope: null` removes an inherited feature
            merged = {key: value for key, value in merged.items() if not (value is None and key in low)}
        return merged

    return Tree(merge(below.data, above.data, ()), {**below.where, **above.where})


def _merge_settings(low: Overrides, high: Overrides) -> Overrides:
    """Return the settings of `low` overridden by `high`, dropping each `section: null` that removed a section."""
    sections = {parent for key in low for parent in dotted.parents(key)}
    merged = dotted.override(low, high)
    return {key: value for key, value in merged.items() if not (key in high and value is None and key in sections)}
