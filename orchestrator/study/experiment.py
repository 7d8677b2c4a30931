"""The experiment file: schema, inheritance, variables, and errors that say where and what instead."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ablatrix.orchestrator.study import (
    command_checks,
    exported_env,
    extends,
    field_checks,
    find_file,
    secret_checks,
    yaml_tree,
)
from ablatrix.orchestrator.study.command_settings import CommandKeys
from ablatrix.orchestrator.study.extends import Overrides
from ablatrix.orchestrator.study.find_file import Source
from ablatrix.orchestrator.study.sbatch_options import find_place, minutes
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.study.yaml_tree import KeyPath, Tree
from ablatrix.trainer.config import InfoConfig, RunConfig, field_errors, keys
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.config.paths import expand_path
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.rundir.errors import ConfigError, UserError


@dataclass(frozen=True)
class Level:
    """A feature switched on: a plain feature has one level, one with `levels:` has several, of which one is on."""

    label: str  # `rope`, or `lr.high` for a level
    path: KeyPath  # where it stands in the file
    overrides: Any


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
MOST_NAMES = 20  # of a list that are told
EXAMPLES = {
    "features": "features: {swiglu: {model.swiglu: true}}",
    "cells": "cells: {modern: [swiglu, rope]}",
    "design": "design: [baseline, one_at_a_time]",
    "exclude": "exclude: [[rope, alibi]]",
    "seeds": "seeds: 5, seeds: [1, 2, 3], seeds: 1-5",
    "launcher": "launcher: sbatch",
    "slurm": 'slurm: {partition: gpu, time: "04:00:00"}',
    "slurm.setup": "setup: [module load cuda]",
    "slurm.extra": "extra: {nodelist: node1}",
    "export": "export: [WANDB_API_KEY]",
    "env": "env: {WANDB_MODE: offline}",
    "experiment_info": "experiment_info: {description: seven cells}",
    "metrics": "metrics: {csv: log.csv}",
}
SECTIONS = ("base", "features", "cells", "slurm", "experiment_info", "env")  # may stand empty
DESIGNS = ("baseline", "one_at_a_time", "all_on", "leave_one_out", "factorial")


def safe_name(name: str) -> str:
    """The allow-list for whatever becomes a folder or a word of a job script. Raises ValueError."""
    if not NAME.fullmatch(name):
        raise ValueError("a name has letters, digits and . _ + - only, starts with a letter or digit, at most 80 long")
    return name


SafeName = Annotated[str, AfterValidator(safe_name)]


def usable_path(path: str) -> str:
    """Return a folder's path, expanded. Raises ValueError for control characters, and for what looks like an option."""
    path = expand_path(path)
    if not path.isprintable():
        raise ValueError("a path cannot hold control characters")
    if os.path.normpath(path).startswith("-"):
        raise ValueError("a path that begins with - would be taken for an option")
    return path


Exported = Annotated[str, AfterValidator(exported_env.checked)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(le=field_checks.MOST_SEEDS)]
SeedText = Annotated[str, Field(pattern=field_checks.SEEDS)]
Seeds = Annotated[
    Count | list[Seed],
    BeforeValidator(field_checks.seeds, json_schema_input_type=Count | list[Seed | SeedText] | SeedText),
]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ExperimentInfo(InfoConfig):
    """What the experiment is about, for people: goes into every run's log and into the report."""


class Experiment(CommandKeys, Strict):
    """An experiment file, resolved: variables filled in, dotted keys, every name checked."""

    name: SafeName
    experiment_info: ExperimentInfo = ExperimentInfo()
    base: Any = {}  # checked key by key, for better messages: Overrides
    features: dict[SafeName, Any] = {}
    design: list[Any] = ["baseline", "one_at_a_time", "all_on"]
    cells: dict[SafeName, list[str]] = {}
    exclude: list[list[str]] = Field([], description="feature combinations that are left out")
    seeds: Seeds = Field([1], description="a list, a range such as 1-5, or n for 1..n")
    budget: float | None = Field(None, gt=0, description="GPU-hours that submit may not pass without --over-budget")
    launcher: Literal["auto", "local", "submitit", "sbatch"] = "auto"
    slurm: SlurmSettings = Field(default_factory=SlurmSettings)
    export: list[Exported] = Field([], description="variables of your shell that jobs get besides the usual ones")
    not_secret: list[str] = Field([], description="names of settings that only look like secrets")
    output: Annotated[str, AfterValidator(usable_path)] = Field("out", min_length=1)

    @property
    def seed_list(self) -> list[int]:
        return list(range(1, self.seeds + 1)) if isinstance(self.seeds, int) else self.seeds

    @property
    def info(self) -> Overrides:
        """`experiment_info` as the runs' settings."""
        return {f"info.{name}": text for name, text in self.experiment_info.model_dump().items() if text}

    def levels(self) -> list[list[Level]]:
        """For each feature its levels, in the file's order."""
        return _levels(self.features)

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.output) / self.name


def _levels(features: dict[str, Any]) -> list[list[Level]]:
    groups = []
    for name, body in features.items():
        root: KeyPath = ("features", name)
        if isinstance(body, dict) and set(body) == {"levels"} and isinstance(body["levels"], dict):
            pairs = [((*root, "levels", key), f"{name}.{key}", inner) for key, inner in body["levels"].items()]
        else:
            pairs = [(root, name, body)]
        groups.append([Level(label, path, overrides) for path, label, overrides in pairs])
    return groups


TOP_LEVEL = ("extends", "vars", extends.CONFIGS, *Experiment.model_fields)


@dataclass(frozen=True)
class Loaded:
    """An experiment, where each of its keys stands, and the overrides given on the command line."""

    experiment: Experiment
    tree: Tree
    source: Source
    forced: Overrides = field(default_factory=dict)

    @property
    def file(self) -> str:
        """The file as it is called: `file.yaml`, or `file.yaml#config`."""
        return str(self.source)

    def at(self, *path: str) -> str:
        """`file:line: ` of a key, for the front of a message."""
        position = self.tree.position(path)
        return f"{position}: " if position else f"{self.file}: "


def load(path: Path, sets: Iterable[str] = ()) -> Loaded:
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
    secret_checks.refuse_filled(data, tree)
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


# ---- checks


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
        blocks += [(level.path, level.overrides) for group in _levels(data["features"]) for level in group]
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
