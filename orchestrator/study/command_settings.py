"""The keys of an experiment file that describe a command: `command:`, `flags:`, `metrics:` and so on (pydantic)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from ablatrix.orchestrator.study import command, command_template
from ablatrix.orchestrator.study.command_flags import Flags, Style
from ablatrix.orchestrator.study.literals import Text, number_as_text, whole_number
from ablatrix.orchestrator.study.metric import COMMAND, Measure
from ablatrix.trainer.config.paths import expand_path
from ablatrix.trainer.config.suggestions import nearest

KINDS = ("csv", "jsonl", "regex", "tensorboard", "wandb")
RESERVED = ("ABLATRIX_", "SLURM_")  # prefixes of variables that are set per run


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("not the name of an environment variable")
    if name.startswith(RESERVED):
        raise ValueError("set by Ablatrix or Slurm itself")
    return name


def _usable(path: str) -> str:
    """Return a path as written. Raise ValueError if it cannot be expanded."""
    expand_path(path)
    return path


Folder = Annotated[Text, AfterValidator(_usable)]


def _words(command: str | list[str]) -> tuple[str, ...]:
    return tuple(command_template.split(command) if isinstance(command, str) else command)


def _pattern(pattern: str) -> str:
    """Return a regular expression whose named groups are columns. Raise ValueError for anything else."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if "iter" not in compiled.groupindex:
        raise ValueError("no named group for the step: (?P<iter>\\d+)")
    return pattern


Word = Annotated[str, BeforeValidator(number_as_text), WithJsonSchema({"type": ["string", "number", "boolean"]})]
Command = Annotated[Text | list[Word], AfterValidator(_words)]
Pattern = Annotated[Text, AfterValidator(_pattern)]


COUNTED = ("iter", "dt", "dt_ms", "lr", "tokens", "seconds")  # columns that do not measure quality
# Words in names of metrics for which higher is better, so the direction must be given
HIGHER = {"acc", "accuracy", "auc", "bleu", "f1", "iou", "miou", "precision", "psnr", "recall", "rouge", "top1"}


def _measure_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w./@ -]{0,79}", name):
        raise ValueError("must be one column of the source, such as val_acc")
    if name in COUNTED:
        raise ValueError("not a measure of quality; choose a loss, an accuracy or the like")
    return name


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Metrics(Part):
    """Where the numbers come from: one kind of source, and how its names map to columns of loss.csv."""

    csv: Text | None = Field(None, min_length=1, description="a CSV file with a header")
    jsonl: Text | None = Field(None, min_length=1, description="a file with one JSON object per line")
    tensorboard: Text | None = Field(None, min_length=1, description="a folder with event files, at any depth")
    wandb: Text | None = Field(None, min_length=1, description="a folder with W&B offline runs, at any depth")
    regex: Annotated[
        Annotated[list[Pattern], Field(min_length=1)] | None,
        BeforeValidator(lambda v: [v] if isinstance(v, str) else v),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
    ] = Field(None, description="patterns matched against the output, with columns as named groups: (?P<iter>\\d+)")
    file: Text = Field("job.out", min_length=1, description="file that the patterns search; job.out: the output")
    columns: dict[str, Text] = Field({}, description="column of loss.csv -> its name in the source")
    steps: Annotated[int, Field(ge=1), BeforeValidator(whole_number)] | str | None = Field(
        None, description="steps of a run: {max_iters}, or a number"
    )
    tokens_per_step: Annotated[float, Field(gt=0)] | str | None = Field(None, description="tokens per step")
    compare: Annotated[Text, AfterValidator(_measure_name)] | None = Field(
        None, description="measure to compare: a column or key of the source; default: val_loss, else loss"
    )
    higher_is_better: bool | None = Field(None, description="true if larger values are better; default: false")
    name: Annotated[Text, Field(min_length=1, max_length=60)] | None = Field(
        None, description="name of the measure in the report, such as accuracy or MSE"
    )
    unit: Annotated[Text, Field(max_length=30)] = Field(
        "", description="unit of the compared values, such as nats per token"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Metrics:
        named = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(named) > 1 or (not named and (self.columns or self.file != "job.out" or not self.compare)):
            raise ValueError(f"give one source ({', '.join(KINDS)}), got {', '.join(named) or 'none'}")
        known = [*command.METRIC_NAMES, command.EPOCH, *([self.compare] if self.compare else [])]
        for name in (*self.columns, *self._groups()):
            if name not in known:
                raise ValueError(
                    f"no column {name!r}{nearest(name, known)}; columns: {', '.join(known)}; to compare a "
                    f"different value, give it: `compare: {name}`"
                )
        if self.regex and self.compare and self.compare not in (*self._groups(), "loss", "val_loss"):
            raise ValueError(f"no pattern has the group named by `compare`: (?P<{self.compare}>...)")
        if self.regex and self.columns:
            raise ValueError("the names of the groups of `regex` are the columns; leave `columns` out")
        if not self.regex and self.file != "job.out":
            raise ValueError(f"`file` belongs to `regex`; `{named[0]}` names its own file")
        return self

    @model_validator(mode="after")
    def _direction(self) -> Metrics:
        column = self.compare or "val_loss"
        for name in (column, self.columns.get(column, ""), self.name or ""):
            word = next((w for w in re.split(r"[^a-z0-9]+", name.lower()) if w in HIGHER), None)
            if word and self.higher_is_better is None:
                raise ValueError(f"{name}: set `higher_is_better: true`, or false if lower is better")
        return self

    @property
    def source_columns(self) -> dict[str, str]:
        """`columns`, plus the compared column if it is not a standard one."""
        extra = {self.compare: self.compare} if self.compare and self.compare not in command.METRIC_NAMES else {}
        return extra | self.columns

    @property
    def measure(self) -> Measure:
        """The measure by which the runs are compared."""
        column = self.compare or COMMAND.column
        default = {"val_loss": COMMAND.name, "loss": "training loss"}.get(column, column)
        return Measure(column, self.name or default, self.unit, bool(self.higher_is_better))

    def _groups(self) -> list[str]:
        return [name for pattern in self.regex or () for name in re.compile(pattern).groupindex]

    @property
    def path(self) -> str:
        """The file that is read, as written."""
        return (
            self.csv
            or self.jsonl
            or self.tensorboard
            or self.wandb
            or (self.file if self.regex else command.HELPER_METRICS)
        )

    @property
    def kind(self) -> str:
        """The kind of source."""
        return next((kind for kind in KINDS if getattr(self, kind) is not None), "jsonl")


def _as_flags(value: Any) -> Any:
    return {"style": value} if isinstance(value, str) else value


class CommandKeys(Part):
    """The keys of an experiment whose runs start a command. Without `command`, the other keys have no meaning."""

    command: Command | None = Field(None, description="command that a run starts instead of the built-in trainer")
    resume_command: Command | None = Field(None, description="command that continues an interrupted run")
    checkpoint: Text | None = Field(
        None, min_length=1, description="a file; resume_command is used only once it exists"
    )
    flags: Annotated[Flags, BeforeValidator(_as_flags, json_schema_input_type=Style | Flags)] = Flags()
    env: dict[Annotated[str, AfterValidator(_variable)], Word] = {}
    workdir: Folder = Field(".", min_length=1, description="folder that the command runs in")
    on_signal: Literal["USR1", "USR2", "TERM", "INT", "none"] = Field(
        "none", description="signal on which the command saves its state"
    )
    metrics: Metrics | None = None


OWN_KEYS = tuple(CommandKeys.model_fields)
