"""Load an experiment file: read, merge, fill in variables, validate; all errors at once, each with its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ablatrix.orchestrator.study import (
    command_checks,
    extends,
    field_checks,
    find_file,
    yaml_tree,
)
from ablatrix.orchestrator.study.experiment import (
    DESIGNS,
    EXAMPLES,
    MOST_NAMES,
    NAME,
    SECTIONS,
    TOP_LEVEL,
    Experiment,
    Loaded,
    split_levels,
)
from ablatrix.orchestrator.study.find_file import Source
from ablatrix.orchestrator.study.sbatch_options import find_place, minutes
from ablatrix.orchestrator.study.yaml_tree import KeyPath, Tree
from ablatrix.trainer.config import RunConfig, field_errors, keys
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.rundir.errors import ConfigError, UserError


def load_experiment(path: Path, sets: Iterable[str] = ()) -> Loaded:
    """Read an experiment file with what it extends, fill in its variables, check all names and types.

    path: a file, `file.yaml#config`, or a name on ABLATRIX_PATH.
    sets: `a.b=value` from the command line; they win over everything. Raises ConfigError with every problem found.
    """
    source = find_file.find(str(path)) or find_file.meant(str(path))
    given = extends.parse_sets(sets)
    chosen = {key.removeprefix("vars."): value for key, value in given.items() if key.startswith("vars.")}
    tree = extends.read(source, chosen)
    forced = extends.apply_sets(tree, given, TOP_LEVEL)
    problems: list[str] = []
    data = extends.fill(tree, problems)
    unfilled = bool(problems)
    if "name" not in data and source.config is None:
        _ask_for_config(source)
    data = _without_empty_sections(data)
    problems += field_checks.level_problems(data, tree)
    blocks = _blocks(data)
    if data.get("command") is not None:
        problems += command_checks.setting_problems(blocks, tree)
        field_checks.restore_command(data, blocks, tree)
        for key, value in forced.items():
            forced[key] = field_checks.spelt(value, tree.written(("base", key)))
    else:
        problems += field_checks.settings_problems(blocks, tree)
        for key, value in forced.items():
            forced[key] = field_checks.setting(key, value, tree.written(("base", key)))
    try:
        loaded = Loaded(_validated(data, tree), tree, source, forced)
        problems += _check_design(loaded)
        if all(isinstance(overrides, dict) for _, overrides in blocks):  # else it has been said
            problems += command_checks.problems(loaded)
    except ValidationError as error:
        found = field_errors.by_place(error.errors(), data)
        problems += [
            _explain(path, errors, tree, str(source))
            for path, errors in found
            if not (unfilled and _has_reference(errors))
        ]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return loaded


def _without_empty_sections(data: dict[str, Any]) -> dict[str, Any]:
    """The experiment's own keys. A section without a line below it is as good as none."""
    empty = {key for key in SECTIONS if key in data and data[key] is None}
    return {key: value for key, value in data.items() if key not in ("extends", "vars", *empty)}


def _validated(data: dict[str, Any], tree: Tree) -> Experiment:
    """Raises ValidationError."""
    field_checks.restore_words(data.get("slurm"), tree, ("slurm",))
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        if not field_checks.repair(data, tree, field_errors.by_place(error.errors(), data)):
            raise
    return Experiment.model_validate(data)


def _has_reference(errors: list[Any]) -> bool:
    """True for a value whose `${...}` has been found wrong."""
    return any(isinstance(error["input"], str) and "${" in error["input"] for error in errors)


def _ask_for_config(source: Source) -> None:
    """A file without a name may be a set of configs. Raises UserError naming them."""
    configs = extends.configs_of(yaml_tree.load(source.path))
    if configs:
        choices = ", ".join(f"{source.path}#{name}" for name in configs)
        raise UserError(f"{source.path}: holds several configs; choose one: {choices}")


def _explain(path: KeyPath, errors: list[Any], tree: Tree, file: str) -> str:
    place, entry = field_errors.split_entry(path)
    position, key, kind = tree.position(place) or file, ".".join(place), errors[0]["type"]
    if kind == "extra_forbidden":
        model = field_errors.model_at(Experiment, path[:-1])
        known = list(model.model_fields) if model and model is not Experiment else list(TOP_LEVEL)
        if path[0][0] in "._":
            return f"{position}: {key}: unknown key; a key that only holds anchors begins with x-: x-{key.lstrip('._')}"
        hint = (find_place(path[-1], known) if path[0] == "slurm" else "") or nearest(path[-1], known)
        hint = hint or _place_of(path, known)
        return f"{position}: {key}: unknown key{hint}"
    if kind == "missing" and path == ("name",):
        return f"{file}: name: missing; write `name: my-study`"
    message = field_errors.describe(errors, field_errors.field_at(Experiment, place))
    example = EXAMPLES.get(key) if kind != "value_error" else None
    return f"{position}: {key}: {entry}{message}" + (f"; for example `{example}`" if example else "")


def _place_of(path: KeyPath, known: list[str]) -> str:
    """Where an unknown key belongs: a setting under base; else the keys that a section has."""
    if len(path) > 1:
        return f"; keys: {', '.join(known)}"
    section = nearest(path[0], list(RunConfig.model_fields))
    setting = section or nearest(path[0], [key for key, _ in keys()])
    return setting.replace("did you mean ", "settings stand under base: did you mean base.") if setting else ""


def _blocks(data: dict[str, Any]) -> list[tuple[KeyPath, Any]]:
    """Where settings stand in a file: its base, and each level of each feature."""
    blocks: list[tuple[KeyPath, Any]] = [(("base",), data.get("base", {}))]
    if isinstance(data.get("features"), dict):
        blocks += [(level.path, level.overrides) for group in split_levels(data["features"]) for level in group]
    return blocks


def _check_design(loaded: Loaded) -> list[str]:
    """Words of `design`, names used in `cells` and `exclude`, level names, seeds."""
    experiment, problems = loaded.experiment, []
    levels = [level for group in experiment.levels() for level in group]
    known = [level.label for level in levels]
    labels = frozenset(known)
    listed = ", ".join(known[:MOST_NAMES]) + (f" and {len(known) - MOST_NAMES:,} more" if known[MOST_NAMES:] else "")
    for item in experiment.design:
        word = next(iter(item)) if isinstance(item, dict) and len(item) == 1 else item
        if word not in DESIGNS or (isinstance(item, dict) and (word != "factorial" or not _is_order(item[word]))):
            hint = nearest(str(word), DESIGNS)
            problems.append(f"{loaded.at('design')}design: {spell(item)!r} is not one of {', '.join(DESIGNS)}{hint}")
    groups: list[tuple[KeyPath, list[str]]] = [(("cells", name), m) for name, m in experiment.cells.items()]
    groups += [(("exclude",), members) for members in experiment.exclude]
    for path, members in groups:
        for member in members:
            if len(problems) == field_checks.MOST_FAULTS:
                return [*problems, field_checks.MORE]
            if member not in labels:
                problems.append(
                    f"{loaded.at(*path)}{'.'.join(path)}: no feature {member!r}{nearest(member, known)}; "
                    f"features: {listed or 'none'}"
                )
    for level in levels:
        if not NAME.fullmatch(level.path[-1]):
            problems.append(f"{loaded.at(*level.path)}{'.'.join(level.path)}: {level.path[-1]!r} is not a safe name")
    for name in ("baseline", "all_on"):
        if name in (*known, *experiment.cells):
            problems.append(f"{loaded.at('features', name)}{name}: is what designs call a cell; choose another name")
    settings = experiment.slurm
    if settings.signal_seconds >= 60 * minutes(settings.time):
        problems.append(
            f"{loaded.at('slurm', 'time')}slurm.signal_seconds: {settings.signal_seconds} s before the end of a job of "
            f"{settings.time} is before its start; raise slurm.time or lower slurm.signal_seconds"
        )
    for name, other in _differing_in_case([*experiment.features, *experiment.cells, *known]):
        problems.append(f"{loaded.at('features')}features: {name} and {other} differ in case only; rename one")
    if len(set(known)) < len(known):
        problems.append(f"{loaded.at('features')}features: a level and a feature have the same name")
    seeds = experiment.seed_list
    if not seeds or len(set(seeds)) != len(seeds):
        problems.append(f"{loaded.at('seeds')}seeds: give at least one seed, each once, got {experiment.seeds!r}")
    return problems


def _differing_in_case(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Names that some file systems, and many eyes, take for one."""
    first: dict[str, str] = {}
    for name in dict.fromkeys(names):
        other = first.setdefault(name.casefold(), name)
        if other != name:
            yield other, name


def _is_order(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
