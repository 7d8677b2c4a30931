"""The schema of an experiment file (pydantic), and a loaded experiment."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from ablatrix.orchestrator.study import exported_env
from ablatrix.orchestrator.study.command_settings import CommandKeys
from ablatrix.orchestrator.study.extends import CONFIGS, Overrides
from ablatrix.orchestrator.study.levels import Level, split_levels
from ablatrix.orchestrator.study.literals import Text, number_as_text, whole_number
from ablatrix.orchestrator.study.looks import AdaptiveSeeds, Looks
from ablatrix.orchestrator.study.notify_settings import Notify
from ablatrix.orchestrator.study.scale import Scale, Size
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.study.tuning import TuneField
from ablatrix.trainer.config import InfoConfig
from ablatrix.trainer.config.paths import expand_path

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.find_file import Source
    from ablatrix.orchestrator.study.yaml_tree import Tree

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}")
MOST_SEEDS = 10_000
SEEDS = r"^\s*[0-9]+[0-9,\s-]*$"  # what an editor accepts as seeds in a string
EXAMPLES = {
    "features": "features: {swiglu: {model.swiglu: true}}",
    "cells": "cells: {modern: [swiglu, rope]}",
    "design": "design: [baseline, one_at_a_time]",
    "exclude": "exclude: [[rope, alibi]]",
    "scale": "scale: {model.model_type: [gpt-nano, gpt-micro, gpt-mini]}",
    "seeds": "seeds: 5, seeds: [1, 2, 3], seeds: 1-5, seeds: {start: 3, up_to: 8}",
    "goal": "goal: {effect: 0.03, power: 0.8}",
    "tune": "tune: {trainer.learning_rate: [1e-3, 2e-3, 4e-3]}",
    "launcher": "launcher: sbatch",
    "slurm": 'slurm: {partition: gpu, time: "04:00:00"}',
    "slurm.setup": "setup: [module load cuda]",
    "slurm.extra": "extra: {nodelist: node1}",
    "export": "export: [WANDB_API_KEY]",
    "notify": "notify: {webhook: $ABLATRIX_WEBHOOK}",
    "env": "env: {WANDB_MODE: offline}",
    "experiment_info": "experiment_info: {description: seven cells}",
    "metrics": "metrics: {csv: log.csv}",
}
SECTIONS = ("base", "features", "cells", "scale", "slurm", "experiment_info", "env")  # may be empty


def safe_name(name: str) -> str:
    """Return a name that is safe for a folder and in a job script. Raise ValueError for any other."""
    if not NAME.fullmatch(name):
        raise ValueError("names have up to 80 letters, digits and . _ + -, and start with a letter or digit")
    return name


SafeName = Annotated[Text, AfterValidator(safe_name)]


def usable_path(path: str) -> str:
    """Return a folder's path, expanded. Raise ValueError if it has control characters or looks like an option."""
    path = expand_path(path)
    if not path.isprintable():
        raise ValueError("paths cannot contain control characters")
    if os.path.normpath(path).startswith("-"):
        raise ValueError("a path that begins with - would be taken for an option")
    return path


def parse_seeds(value: Any) -> Any:
    """Return `1-5` and `1, 2, 3` as a list of numbers; anything else unchanged."""
    if isinstance(value, list):
        parts = [whole_number(part) if isinstance(part, list) else parse_seeds(part) for part in value]
        return [seed for part in parts for seed in (part if isinstance(part, list) else [part])]
    if not isinstance(value, str):
        return whole_number(value)
    text = value.strip()
    if span := re.fullmatch(r"([0-9]{1,18}) *- *([0-9]{1,18})", text):
        first, last = int(span[1]), int(span[2])
        return list(range(first, last + 1)) if first <= last < first + MOST_SEEDS else value
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    parts = re.split(r"[,\s]+", text)
    return parse_seeds(parts) if len(parts) > 1 and all(parts) else value


Exported = Annotated[Text, AfterValidator(exported_env.checked)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(le=MOST_SEEDS)]
SeedText = Annotated[str, Field(pattern=SEEDS)]
Seeds = Annotated[
    Count | list[Seed] | AdaptiveSeeds,
    BeforeValidator(parse_seeds, json_schema_input_type=Count | list[Seed | SeedText] | SeedText | AdaptiveSeeds),
]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ExperimentInfo(InfoConfig):
    """What the experiment is about, for human readers: included in every run's log and in the report."""

    @field_validator("*", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        return number_as_text(value)


class Goal(Strict):
    """What the study should show; if `seeds` is missing, the goal determines them."""

    effect: float = Field(gt=0, description="smallest effect of interest, in the unit of the measure")
    power: float = Field(0.8, gt=0.05, lt=1, description="probability of detecting an effect of this size")


class Experiment(CommandKeys, Strict):
    """An experiment file, resolved: variables filled in, dotted keys, every name checked."""

    name: SafeName
    experiment_info: ExperimentInfo = ExperimentInfo()
    base: Any = {}  # checked key by key, for better messages; Overrides once checked
    features: dict[SafeName, Any] = {}
    design: list[Any] = ["baseline", "one_at_a_time", "all_on"]
    cells: dict[SafeName, list[Text]] = {}
    exclude: list[list[Text]] = Field([], description="feature combinations to leave out")
    scale: Scale | None = Field(None, description="sizes at which every cell is trained, with its own baseline")
    seeds: Seeds = Field([1], description="a list, a range such as 1-5, n for 1..n, or planned looks")
    goal: Goal | None = Field(
        None, description="the effect to show and its power; sets the seeds if `seeds` is missing"
    )
    tune: TuneField = Field(
        None, description="a setting and its values: each cell is compared at its best; `seeds`: of these runs"
    )
    noise: float | None = Field(
        None, gt=0, description="standard deviation of the final value between seeds, for the forecast of `plan`"
    )
    margin: float | None = Field(
        None, gt=0, description="effect on the final value below which a feature does not matter, set in advance"
    )
    budget: float | None = Field(None, gt=0, description="GPU-hours that submit may not exceed without --over-budget")
    launcher: Literal["auto", "local", "submitit", "sbatch"] = "auto"
    slurm: SlurmSettings = Field(default_factory=SlurmSettings)
    export: list[Exported] = Field([], description="extra variables of your shell to pass to jobs")
    notify: Notify | None = Field(None, description="where to send a message when the study ends")
    not_secret: list[Text] = Field([], description="names of settings that only look like secrets")
    output: Annotated[Text, AfterValidator(usable_path)] = Field("out", min_length=1)

    @property
    def seed_list(self) -> list[int]:
        """The seeds; with planned looks, those of the last look."""
        if isinstance(self.seeds, list):
            return self.seeds
        return list(range(1, (self.seeds if isinstance(self.seeds, int) else self.seeds.resolved().seeds[-1]) + 1))

    @property
    def looks(self) -> Looks | None:
        """The planned looks, None if all seeds run at once."""
        return self.seeds.resolved() if isinstance(self.seeds, AdaptiveSeeds) else None

    @property
    def sizes(self) -> list[Size]:
        """The sizes of the scale axis; without an axis, one size without a name."""
        return self.scale.sizes() if self.scale else [Size()]

    @property
    def seeds_follow_goal(self) -> bool:
        """True if the goal determines the seeds."""
        return self.goal is not None and "seeds" not in self.model_fields_set

    @property
    def info(self) -> Overrides:
        """Return `experiment_info` as settings of the runs."""
        return {f"info.{name}": text for name, text in self.experiment_info.model_dump().items() if text}

    def levels(self) -> list[list[Level]]:
        """Return the levels of each feature, in the file's order."""
        return split_levels(self.features)

    def all_levels(self) -> list[Level]:
        """Return the levels of all features."""
        return [level for group in self.levels() for level in group]

    def active_levels(self, features: Collection[str]) -> list[Level]:
        """Return the levels that are on in a cell with these features, in the file's order."""
        return [level for level in self.all_levels() if level.label in features]

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.output) / self.name


TOP_LEVEL = ("extends", "vars", CONFIGS, *Experiment.model_fields)


@dataclass(frozen=True)
class Loaded:
    """An experiment, the positions of its keys, and the settings overridden by --set.

    files: the experiment file and the files it extends.
    """

    experiment: Experiment
    tree: Tree
    source: Source
    forced: Overrides = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def file(self) -> str:
        """Return the file's name: `file.yaml` or `file.yaml#config`."""
        return str(self.source)

    def at(self, *path: str) -> str:
        """Return `file:line: ` for a key, to prefix a message."""
        position = self.tree.position(path)
        return f"{position}: " if position else f"{self.file}: "
