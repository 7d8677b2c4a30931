"""Settings checked where they stand, and taken as their author wrote them.

YAML decides the type of an unquoted word before anybody knows where it belongs: where a text is expected, `007`, `1.10`
and `true` are the very text, and `1e5` is a whole number where one is expected.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ablatrix.orchestrator.study import command_template, yaml_tree
from ablatrix.orchestrator.study.yaml_tree import KeyPath, Tree
from ablatrix.trainer.config import InfoConfig, RunConfig, field_errors, keys
from ablatrix.trainer.config.field_errors import Path, describe, show
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.rundir.errors import UserError

MOST_FAULTS = 50  # of one kind that are reported
MOST_SEEDS = 10_000
SEEDS = r"^\s*\[?\s*(range\( *)?[0-9]+([0-9,;:.\s-]|to)*\)?\s*\]?\s*$"  # what an editor takes for seeds in a text
MORE = "and more faults like these"
FIXED = {
    "system.seed": "set per run; give `seeds:` at the top level",
    "system.work_dir": "set per run; give `output:` at the top level",
    **{
        f"info.{name}": "the same in all runs; give `experiment_info:` at the top level"
        for name in InfoConfig.model_fields
    },
}
_SCALARS = (str, int, float, bool)


def repair(data: Any, tree: Tree, found: Iterable[tuple[Path, Sequence[Any]]]) -> bool:
    """Put texts and whole numbers as they were written where a model expects them; True if anything changed.

    found: what the model has refused, as of `field_errors.by_place`.
    """
    changed = False
    for path, errors in found:
        types = {error["type"] for error in errors}
        kinds: set[Any] = {str} if "string_type" in types else {int} if "int_type" in types else set()
        place, written = _container(data, path), _written_at(tree, path)
        if place is None or not kinds:
            continue
        container, key = place
        better = _meant(container[key], written, kinds)
        changed = changed or better is not container[key]
        container[key] = better
    return changed


def restore_words(section: Any, tree: Tree, path: KeyPath, kinds: tuple[type, ...] = (int,)) -> None:
    """Put numbers of a section whose spelling says more than their value (`007`) as texts."""
    for key, value in section.items() if isinstance(section, dict) else ():
        written = tree.written((*path, key))
        if isinstance(value, dict):
            restore_words(value, tree, (*path, key), kinds)
        elif type(value) in kinds and isinstance(written, str) and written != str(value):
            section[key] = written if _reads_as(written, value) else value


def restore_command(data: dict[str, Any], blocks: Sequence[tuple[KeyPath, Any]], tree: Tree) -> None:
    """Have the numbers of a command, its environment and its settings reach it as they were written."""
    restore_words(data.get("env"), tree, ("env",), (int, float))
    for key in ("command", "resume_command"):
        if isinstance(data.get(key), list):
            data[key] = _meant(data[key], tree.written((key,)), {str})
    for path, overrides in blocks:
        for key, value in overrides.items() if isinstance(overrides, dict) else ():
            overrides[key] = spelt(value, tree.written((*path, key)))


def spelt(value: Any, written: Any) -> Any:
    """A number of a command with its spelling, if that is its own."""
    read = _meant(value, written, {str})
    return command_template.spelt(value, read if read is not value else None)


def _container(data: Any, path: Path) -> tuple[Any, Any] | None:
    """The mapping or list that holds the value at `path`, and its key there; None where the file has no such place.

    A model may look elsewhere: a setting of `slurm:` may have come from `slurm.extra`.
    """
    for number, part in enumerate(path):
        key = int(part) if isinstance(data, list) else part
        if isinstance(data, dict) and key not in data:
            return None
        if number == len(path) - 1 and isinstance(data, dict | list):
            return data, key
        data = data[key]
    return None


def _written_at(tree: Tree, path: Path) -> Any:
    if path in tree.where or not path or not path[-1].isdigit():
        return tree.written(path)
    written = _written_at(tree, path[:-1])
    return written[int(path[-1])] if isinstance(written, list) and int(path[-1]) < len(written) else None


def _meant(value: Any, written: Any, kinds: set[type]) -> Any:
    """The value as one of these types, where what was written is one; else as it is."""
    if isinstance(value, list):
        texts = written if isinstance(written, list) and len(written) == len(value) else [None] * len(value)
        return [_meant(inner, text, kinds) for inner, text in zip(value, texts, strict=True)]
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    if isinstance(value, str | dict) or type(value) in kinds or str not in kinds or not isinstance(written, str):
        return value
    return written if _reads_as(written, value) else value


def _reads_as(written: str, value: Any) -> bool:
    """True where the text belongs to this value, and not to one that was overridden."""
    try:
        return bool(yaml_tree.typed(written) == value)
    except UserError:
        return False


def seeds(value: Any) -> Any:
    """Return `1-5`, `1, 2, 3` and `range(5)` as a list of numbers; anything else as it is."""
    if isinstance(value, list):
        parts = [seeds(part) if isinstance(part, str) else part for part in value]
        return [seed for part in parts for seed in (part if isinstance(part, list) else [part])]
    if not isinstance(value, str):
        return value
    text = value.strip().removeprefix("[").removesuffix("]").strip()
    span = re.fullmatch(r"([0-9]{1,18}) *(?:-|\.\.\.?|:|to) *([0-9]{1,18})", text)
    called = re.fullmatch(r"range\( *(?:([0-9]{1,18}) *, *)?([0-9]{1,18}) *\)", text)
    if span or called:
        first, last = (int(span[1]), int(span[2])) if span else (int(called[1] or 0), int(called[2]) - 1)  # type: ignore[index]
        return list(range(first, last + 1)) if first <= last < first + MOST_SEEDS else value
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    parts = re.split(r"[,;\s]+", text)
    return seeds(parts) if len(parts) > 1 and all(parts) else value


def settings_problems(blocks: Sequence[tuple[KeyPath, Any]], tree: Tree) -> list[str]:
    """Names of our trainer's settings that are wrong, each with its place; values are taken as they were written.

    What is wrong with values is found for each cell, with what depends on several of them, but told along with names.
    """
    known = dict(keys())
    problems: list[str] = []
    values: list[str] = []
    for path, overrides in blocks:
        name = ".".join(path)
        if not isinstance(overrides, dict):
            where = f"{tree.position(path)}: {name}: "
            problems.append(f"{where}must be settings such as `model.swiglu: true`, found {show(overrides)}")
            continue
        for section in [key for key in overrides if key in RunConfig.model_fields and overrides[key] in (None, {})]:
            del overrides[section]  # all its settings are commented out
        if path[0] == "features" and not overrides:
            problems.append(f"{tree.position(path)}: {name}: overrides nothing; name what the feature switches on")
        for key, value in overrides.items():
            if len(problems) == MOST_FAULTS:
                return [*problems, MORE]
            where = f"{tree.position((*path, key))}: {name}.{key}: "
            overrides[key] = setting(key, value, tree.written((*path, key)))
            problem = name_problem(key, value, known)
            problems += [where + problem] if problem else []
            problem = "" if problem or "${" in str(value) else value_problem(key, overrides[key])
            values += [where + problem] if problem else []
    return problems + values if problems else []


def level_problems(data: dict[str, Any], tree: Tree) -> list[str]:
    """Features whose `levels` are not names with settings; each is taken out of the data."""
    problems = []
    features = data.get("features")
    for name, body in list(features.items()) if isinstance(features, dict) else ():
        keys_found = [key for key in body if _is_levels(key)] if isinstance(body, dict) else []
        alone = keys_found == ["levels"] and len(body) == 1
        if not keys_found or (alone and isinstance(body["levels"], dict) and body["levels"]):
            continue
        if data.get("command") is not None and not (alone and body["levels"] in (None, {})):
            continue  # a setting of that name
        path = ("features", name, keys_found[0])
        wrong = f"found {show(body['levels'])}" if alone else "and nothing stands beside them"
        problems.append(
            f"{tree.position(path)}: {'.'.join(path)}: levels are names with settings, "
            f"`{name}: {{levels: {{low: {{...}}, high: {{...}}}}}}`, {wrong}"
        )
        del data["features"][name]
    return problems


def _is_levels(key: str) -> bool:
    return key == "levels" or key.startswith("levels.") or key.endswith(".levels")


def setting(key: str, value: Any, written: Any) -> Any:
    """A trainer's setting as it was meant."""
    field = field_errors.field_at(RunConfig, tuple(key.split(".")))
    return _meant(value, written, _kinds(field)) if field else value


def _kinds(field: FieldInfo) -> set[type]:
    """The scalar types that a field takes, in lists too."""
    found: set[Any] = set()
    left: list[Any] = [field.annotation]
    while left:
        part = left.pop()
        found |= {part} if part in _SCALARS else {type(part)} if isinstance(part, str) else set()
        left += get_args(part)
    return found


def name_problem(key: str, value: Any, known: Mapping[str, Any]) -> str:
    """Why a key is none of our trainer's settings, '' where it is one."""
    if key in FIXED:
        return FIXED[key]
    if key in RunConfig.model_fields:
        example = next(name for name in known if name.startswith(f"{key}."))
        return f"must be settings such as `{example}: ...`, found {show(value)}"
    return "" if key in known else f"unknown key{nearest(key, list(known))}"


def value_problem(key: str, value: Any) -> str:
    """What is wrong with a setting by itself, '' where nothing is."""
    section, _, name = key.partition(".")
    model: Any = RunConfig.model_fields[section].annotation
    try:
        model.model_validate({name: value}, strict=True)
    except ValidationError as error:
        for path, errors in field_errors.by_place(error.errors(), {name: value}):
            if path[:1] == (name,):
                place, entry = field_errors.split_entry(path)
                return entry + describe(errors, field_errors.field_at(model, place))
    return ""
