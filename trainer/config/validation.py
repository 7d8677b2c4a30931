"""Validate and read a run's configuration; every fault is reported as `key: fault`. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ablatrix.trainer.config import field_errors
from ablatrix.trainer.config.run_config import RunConfig
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.rundir.errors import ConfigError, UserError
from ablatrix.trainer.rundir.files import read_bytes


def keys() -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, pydantic field) of every setting, in order."""
    for section, field in RunConfig.model_fields.items():
        annotation: Any = field.annotation
        for name, inner in annotation.model_fields.items():
            yield f"{section}.{name}", inner


def validate(tree: dict[str, Any], strict: bool = True) -> RunConfig:
    """Return a nested dict as RunConfig. Raises ConfigError with one `key: fault` line per problem.

    strict: a number in quotes is a wrong type (files); else it is converted (command lines).
    """
    try:
        return RunConfig.model_validate(tree, strict=strict)
    except ValidationError as error:
        found = field_errors.by_place(error.errors(), tree)
        raise ConfigError([_describe(path, errors) for path, errors in found]) from None


def load(path: str | Path) -> RunConfig:
    """Read a config.json. Raises UserError (unreadable, not JSON) or ConfigError (wrong keys or types)."""
    try:
        tree = json.loads(read_bytes(Path(path)).decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a run's configuration: the top level must be an object")
    return validate(tree)


def _describe(path: field_errors.Path, errors: Sequence[Any]) -> str:
    place, entry = field_errors.split_entry(path)
    key = ".".join(place)
    if errors[0]["type"] == "extra_forbidden":
        known = [k for k, _ in keys()]
        return f"{key}: unknown key{nearest(key, known if len(path) > 1 else list(RunConfig.model_fields))}"
    return f"{key}: {entry}{field_errors.describe(errors, field_errors.field_at(RunConfig, place))}"
