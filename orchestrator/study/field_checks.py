"""Check settings where they are written, and convert numbers to the strings and integers that fields expect."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from ablatrix.orchestrator.study.levels import settings_blocks
from ablatrix.orchestrator.study.literals import text_of
from ablatrix.orchestrator.study.scale import OWN_KEYS as OWN_KEYS_OF_SCALE
from ablatrix.trainer.config import InfoConfig, RunConfig, field_errors, keys
from ablatrix.trainer.config.field_errors import describe, show
from ablatrix.trainer.config.suggestions import hint

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from ablatrix.orchestrator.study.yaml_tree import Tree

FIXED = {
    "system.seed": "set per run; give `seeds:` at the top level",
    "system.work_dir": "set per run; give `output:` at the top level",
    **{
        f"info.{name}": "the same in all runs; give `experiment_info:` at the top level"
        for name in InfoConfig.model_fields
    },
}
_SCALARS = (str, int, float, bool)


# ---- numbers as strings and integers


def convert_setting(key: str, value: Any) -> Any:
    """Convert a setting of our trainer to the type that its field expects."""
    field = field_errors.field_at(RunConfig, tuple(key.split(".")))
    return _convert(value, _kinds(field)) if field else value


def _convert(value: Any, kinds: set[type]) -> Any:
    if isinstance(value, list):
        return [_convert(inner, kinds) for inner in value]
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    kind = next((kind for kind in (bool, int, float) if isinstance(value, kind)), None)
    return value if kind is None or kind in kinds or str not in kinds else text_of(value)


def _kinds(field: FieldInfo) -> set[type]:
    """Return the scalar types that a field accepts, including inside lists."""
    found: set[Any] = set()
    left: list[Any] = [field.annotation]
    while left:
        part = left.pop()
        found |= {part} if part in _SCALARS else {type(part)} if isinstance(part, str) else set()
        left += get_args(part)
    return found


# ---- problems


def settings_problems(data: dict[str, Any], tree: Tree) -> list[str]:
    """Return what is wrong with the names of our trainer's settings; convert their values in place."""
    for _, settings in settings_blocks(data):
        if isinstance(settings, dict):
            for section in [key for key in settings if key in RunConfig.model_fields and settings[key] in (None, {})]:
                del settings[section]  # all its settings are commented out
            settings |= {key: convert_setting(key, value) for key, value in settings.items()}
    return block_problems(data, tree, "model.swiglu: true", partial(_name_problem, dict(keys())))


def value_problems(data: dict[str, Any], tree: Tree, forced: Collection[str]) -> list[str]:
    """Return what is wrong with each value of our trainer's settings on its own.

    forced: settings from `--set`, which replace these values.
    """
    return block_problems(
        data, tree, "model.swiglu: true", lambda key, value: "" if key in forced else value_problem(key, value)
    )


def block_problems(data: dict[str, Any], tree: Tree, example: str, problem_of: Callable[[str, Any], str]) -> list[str]:
    """Return what is wrong with base, scale and features, prefixed with locations.

    problem_of: returns what is wrong with a setting, '' if nothing is.
    """
    problems = []
    for path, settings in settings_blocks(data):
        name, where = ".".join(path), f"{tree.position(path)}: {'.'.join(path)}: "
        if path == ("scale",) and not isinstance(settings, dict):
            continue  # reported by its model
        if not isinstance(settings, dict):
            problems.append(f"{where}must be a mapping such as `{example}`, found {show(settings)}")
            continue
        if path[0] == "features" and not settings:
            problems.append(f"{where}no overrides; give the settings that the feature changes")
        for key, value in settings.items():
            problem = _list_problem(key, value, problem_of) if path == ("scale",) else problem_of(key, value)
            if problem:
                problems.append(f"{tree.position((*path, key))}: {name}.{key}: {problem}")
    return problems


def _list_problem(key: str, values: Any, problem_of: Callable[[str, Any], str]) -> str:
    """Return what is wrong with a setting of `scale`, which has one value per size."""
    if key in OWN_KEYS_OF_SCALE:
        return ""
    if not isinstance(values, list):
        return problem_of(key, values) or f"must be a list with one value per size, found {show(values)}"
    return next((problem for value in values if (problem := problem_of(key, value))), "")


def _name_problem(known: dict[str, FieldInfo], key: str, value: Any) -> str:
    if key in FIXED:
        return FIXED[key]
    if key in RunConfig.model_fields:
        example = next(name for name in known if name.startswith(f"{key}."))
        return f"must be a mapping such as `{example}: ...`, found {show(value)}"
    names = [name for name in known if not name.startswith("info.")]
    return "" if key in known else f"unknown key{hint(key, names)}"


def value_problem(key: str, value: Any) -> str:
    """Return what is wrong with the value of a setting on its own, '' if nothing is."""
    section, _, name = key.partition(".")
    model = field_errors.model_at(RunConfig, (section,))
    if model is None or name not in model.model_fields or "${" in str(value):
        return ""
    try:
        model.model_validate({name: value}, strict=True)
    except ValidationError as error:
        for path, errors in field_errors.by_place(error.errors(), {name: value}):
            if path[:1] == (name,):
                place, entry = field_errors.split_entry(path)
                return entry + describe(errors, field_errors.field_at(model, place))
    return ""


def remove_malformed_levels(data: dict[str, Any], tree: Tree) -> list[str]:
    """Remove features whose `levels` are not names with settings, and return the problems."""
    problems = []
    features = data.get("features")
    for name, body in list(features.items()) if isinstance(features, dict) else ():
        found = [key for key in body if "levels" in key.split(".")] if isinstance(body, dict) else []
        alone = found == ["levels"] and len(body) == 1
        if not found or (alone and isinstance(body["levels"], dict) and body["levels"]):
            continue
        if data.get("command") is not None and not (alone and body["levels"] in (None, {})):
            continue  # a setting with that name
        path = ("features", name, found[0])
        wrong = f"found {show(body['levels'])}" if alone else "and nothing else beside them"
        problems.append(
            f"{tree.position(path)}: {'.'.join(path)}: levels are names with settings, "
            f"`{name}: {{levels: {{low: {{...}}, high: {{...}}}}}}`, {wrong}"
        )
        del data["features"][name]
    return problems
