"""Read and validate a run's configuration; every problem is reported as `key: problem`. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ablatrix.trainer.config import field_errors
from ablatrix.trainer.config.run_config import RunConfig
from ablatrix.trainer.config.suggestions import hint
from ablatrix.trainer.rundir.errors import ConfigError, UserError
from ablatrix.trainer.rundir.files import read_bytes


def keys() -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, pydantic field) of every setting, in order."""
    for section, field in RunConfig.model_fields.items():
        annotation: Any = field.annotation
        for name, inner in annotation.model_fields.items():
            yield f"{section}.{name}", inner


def validate(tree: dict[str, Any], strict: bool = True) -> RunConfig:
    """Return a nested dict as a RunConfig. Raises ConfigError with one `key: problem` line per problem.

    strict: treat a quoted number as the wrong type (for files) instead of converting it (for command lines).
    """
    try:
        return RunConfig.model_validate(tree, strict=strict)
    except ValidationError as error:
        found = field_errors.by_place(error.errors(), tree)
        raise ConfigError([_describe(path, errors) for path, errors in found]) from None


def load(path: str | Path) -> RunConfig:
    """Return the configuration from a config.json or a YAML file.

    Raises UserError (unreadable, not JSON or YAML) or ConfigError (wrong keys or types).
    """
    return validate(read_tree(path))


def read_tree(path: str | Path) -> dict[str, Any]:
    """Return the settings from a config.json or a YAML file, nested by section; keys in the file may be dotted.

    Raises UserError.
    """
    try:
        text = read_bytes(Path(path)).decode("utf-8")
        tree = _parse_yaml(text) if Path(path).suffix in (".yaml", ".yml") else json.loads(text)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        kind = "YAML" if Path(path).suffix in (".yaml", ".yml") else "JSON"
        raise UserError(f"{path}: not a {kind} file: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a run's configuration: the top level must be an object")
    if "base" in tree or "features" in tree:
        raise UserError(f"{path} describes a study, not a single run; give it to `submit`, or give a run's config.json")
    nested: dict[str, Any] = {}
    for key, value in tree.items():
        section, _, name = str(key).partition(".")
        if name and isinstance(nested.setdefault(section, {}), dict):
            nested[section][name] = value
        elif isinstance(value, dict) and isinstance(nested.get(section), dict):
            nested[section] |= value
        else:
            nested[section] = value
    return nested


def _parse_yaml(text: str) -> Any:
    """Return the content of a YAML file. Raises ValueError naming the line."""
    import yaml  # imported here because most runs start from flags or a config.json

    from ablatrix.trainer.config.yaml_core import CoreLoader

    try:
        return yaml.load(text, Loader=CoreLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _describe(path: field_errors.Path, errors: Sequence[Any]) -> str:
    place, entry = field_errors.split_entry(path)
    key = ".".join(place)
    if errors[0]["type"] == "extra_forbidden":
        known = [k for k, _ in keys()]
        return f"{key}: unknown key{hint(key, known if len(path) > 1 else list(RunConfig.model_fields))}"
    return f"{key}: {entry}{field_errors.describe(errors, field_errors.field_at(RunConfig, place))}"
