"""The experiment file: schema, inheritance, variables, and errors that say where and what instead."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from orchestrator import disclosures, exports, inheritance, locate, yamlfile
from orchestrator.command import checks as command_checks
from orchestrator.command.settings import CommandKeys
from orchestrator.inheritance import Overrides
from orchestrator.locate import Source
from orchestrator.sbatch_options import SWITCHES, VALUED, long_name, minutes
from orchestrator.slurm_settings import SlurmSettings
from orchestrator.yamlfile import KeyPath, Tree
from trainer.config import InfoConfig, keys, nearest
from trainer.errors import ConfigError, UserError
from trainer.paths import expand_path


@dataclass(frozen=True)
class Level:
    """A feature switched on: a plain feature has one level, one with `levels:` has several, of which one is on."""

    label: str  # `rope`, or `lr.high` for a level
    path: KeyPath  # where it stands in the file
    overrides: Any


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
MOST_FAULTS = 50  # of one kind that are told
MOST_NAMES = 20  # of a list that are told
MORE = "and more faults like these"
FIXED = {
    "system.seed": "set per run; give `seeds:` at the top level",
    "system.work_dir": "set per run; give `output:` at the top level",
    **{
        f"info.{name}": "the same in all runs; give `experiment_info:` at the top level"
        for name in InfoConfig.model_fields
    },
}
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


Exported = Annotated[str, AfterValidator(exports.checked)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


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
    seeds: Annotated[int, Field(le=10_000)] | list[Seed] = Field([1], description="a list, or n for 1..n")
    budget: float | None = Field(None, gt=0, description="GPU-hours that submit may not pass without --over-budget")
    launcher: Literal["auto", "local", "submitit", "sbatch"] = "auto"
    slurm: SlurmSettings = SlurmSettings()
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


TOP_LEVEL = ("extends", "vars", inheritance.CONFIGS, *Experiment.model_fields)


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
    source = locate.find(str(path)) or locate.meant(str(path))
    given = inheritance.parse_sets(sets)
    chosen = {key.removeprefix("vars."): value for key, value in given.items() if key.startswith("vars.")}
    tree = inheritance.read(source, chosen)
    forced = inheritance.apply_sets(tree, given, TOP_LEVEL)
    problems: list[str] = []
    data = inheritance.fill(tree, problems)
    disclosures.refuse_filled(data, tree)
    if "name" not in data and source.config is None:
        _ask_for_config(source)
    data.pop("extends", None)
    data.pop("vars", None)
    if data.get("command") is not None:
        problems += command_checks.setting_problems(_blocks(data), tree)
    else:
        problems += _check_trainer_keys(data, tree)
    try:
        loaded = Loaded(Experiment.model_validate(data), tree, source, forced)
        problems += _check_design(loaded)
        if all(isinstance(overrides, dict) for _, overrides in _blocks(data)):  # else it has been said
            problems += command_checks.problems(loaded)
    except ValidationError as error:
        problems += [_explain(e, tree, str(source)) for e in error.errors()]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return loaded


def _ask_for_config(source: Source) -> None:
    """A file without a name may be a set of configs. Raises UserError naming them."""
    configs = inheritance.configs_of(yamlfile.load(source.path))
    if configs:
        choices = ", ".join(f"{source.path}#{name}" for name in configs)
        raise UserError(f"{source.path}: holds several configs; choose one: {choices}")


# ---- checks


def _explain(error: Any, tree: Tree, file: str) -> str:
    path = tuple(str(part) for part in error["loc"] if part != "[key]")
    position, key = tree.position(path) or file, ".".join(path)
    kind = error["type"]
    if kind == "extra_forbidden":
        sections = {"slurm": SlurmSettings.model_fields, "experiment_info": ExperimentInfo.model_fields}
        known = list(sections[path[0]]) if len(path) > 1 and path[0] in sections else list(TOP_LEVEL)
        other = path[0] == "slurm" and long_name(path[-1]) in SWITCHES | VALUED
        hint = "; sbatch options other than these go under slurm.extra" if other else nearest(path[-1], known)
        return f"{position}: {key}: unknown key{hint}"
    if kind == "missing":
        return f"{file}: {key}: missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"{position}: {key}: {message[0].lower() + message[1:]}, got {error['input']!r}"


def _check_trainer_keys(data: dict[str, Any], tree: Tree) -> list[str]:
    """Unknown trainer keys in base and features, each with the nearest name, and features that override nothing."""
    known = [key for key, _ in keys()]
    problems = []
    for path, overrides in _blocks(data):
        name = ".".join(path)
        if not isinstance(overrides, dict):
            problems.append(f"{tree.position(path)}: {name}: must be settings such as `model.swiglu: true`")
        elif path[0] == "features" and not overrides:
            problems.append(f"{tree.position(path)}: {name}: overrides nothing; name what the feature switches on")
        else:
            for key in overrides:
                if len(problems) == MOST_FAULTS:
                    return [*problems, MORE]
                where = f"{tree.position((*path, key))}: {name}.{key}: "
                if key in FIXED:
                    problems.append(f"{where}{FIXED[key]}")
                elif key not in known:
                    problems.append(f"{where}unknown key{nearest(key, known)}")
    return problems


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
            problems.append(f"{loaded.at('design')}design: {item!r} is not one of {', '.join(DESIGNS)}{hint}")
    groups: list[tuple[KeyPath, list[str]]] = [(("cells", name), m) for name, m in experiment.cells.items()]
    groups += [(("exclude",), members) for members in experiment.exclude]
    for path, members in groups:
        for member in members:
            if len(problems) == MOST_FAULTS:
                return [*problems, MORE]
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
