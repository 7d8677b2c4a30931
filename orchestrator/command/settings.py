"""What an experiment file says about a command: `command:` and the keys that go with it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from orchestrator.command import series, template
from trainer.config import nearest
from trainer.paths import expand_path

KINDS = ("csv", "jsonl", "regex", "tensorboard", "wandb")
RESERVED = ("ABLATRIX_", "SLURM_")  # variables that are set per run


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("is not the name of an environment variable")
    if name.startswith(RESERVED):
        raise ValueError("is set by Ablatrix or Slurm itself")
    return name


def _text(value: Any) -> Any:
    """`OMP_NUM_THREADS: 4` means the text 4."""
    return template.text(value, "a.b=c") if isinstance(value, bool | int | float) else value


def _usable(path: str) -> str:
    """Return a path as it is written. Raises ValueError where it cannot be expanded."""
    expand_path(path)
    return path


Folder = Annotated[str, AfterValidator(_usable)]


def _words(command: str | list[str]) -> tuple[str, ...]:
    return tuple(template.split(command) if isinstance(command, str) else command)


def _pattern(pattern: str) -> str:
    """A regular expression whose named groups are columns. Raises ValueError."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None
    if "iter" not in compiled.groupindex:
        raise ValueError("needs the step as a named group: (?P<iter>\\d+)")
    return pattern


Word = Annotated[str, BeforeValidator(_text), WithJsonSchema({"type": ["string", "number", "boolean"]})]
Command = Annotated[str | list[Word], AfterValidator(_words)]
Pattern = Annotated[str, AfterValidator(_pattern)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Metrics(Part):
    """Where the numbers come from: one kind of source, and which of its names is which column of loss.csv."""

    csv: str | None = Field(None, min_length=1, description="a CSV file with a header")
    jsonl: str | None = Field(None, min_length=1, description="a file with a JSON object per line")
    tensorboard: str | None = Field(None, min_length=1, description="a folder with event files, at any depth")
    wandb: str | None = Field(None, min_length=1, description="a folder with runs of W&B's offline mode, at any depth")
    regex: Annotated[
        list[Pattern] | None,
        BeforeValidator(lambda v: [v] if isinstance(v, str) else v),
        Field(min_length=1),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
    ] = Field(None, description="patterns over its output, the columns as named groups: (?P<iter>\\d+)")
    file: str = Field("job.out", min_length=1, description="what the patterns are looked for in; job.out: its output")
    columns: dict[str, str] = Field({}, description="column of loss.csv -> its name in the source")
    steps: Annotated[int, Field(ge=1)] | str | None = Field(
        None, description="steps of a run: {max_iters}, or a number"
    )
    tokens_per_step: Annotated[float, Field(gt=0)] | str | None = Field(None, description="to compare at equal tokens")

    @model_validator(mode="after")
    def _one_source(self) -> Metrics:
        named = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(named) != 1:
            raise ValueError(f"name one source ({', '.join(KINDS)}), got {', '.join(named) or 'none'}")
        for name in (*self.columns, *self._groups()):
            if name not in series.NAMES:
                known = ", ".join(series.NAMES)
                raise ValueError(f"no column {name!r}{nearest(name, series.NAMES)}; columns: {known}")
        if self.regex and self.columns:
            raise ValueError("the names of the groups of `regex` are the columns; leave `columns` out")
        if not self.regex and self.file != "job.out":
            raise ValueError(f"`file` belongs to `regex`; `{named[0]}` names its own file")
        return self

    def _groups(self) -> list[str]:
        return [name for pattern in self.regex or () for name in re.compile(pattern).groupindex]

    @property
    def path(self) -> str:
        """The file that is read, as it was written."""
        return self.csv or self.jsonl or self.tensorboard or self.wandb or self.file

    @property
    def kind(self) -> str:
        """Which kind of source it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)


class CommandKeys(Part):
    """The keys of an experiment whose runs are a command. Without `command`, none of the others means anything."""

    command: Command | None = Field(None, description="what a run starts instead of our trainer")
    resume_command: Command | None = Field(None, description="what goes on with a run that was interrupted")
    checkpoint: str | None = Field(
        None, min_length=1, description="a file; resume_command is used only once it is there"
    )
    flags: Literal["--a.b=c", "--a_b=c", "--b c", "--key=value", "a.b=c", "config-file", "in-process"] = "--a.b=c"
    env: dict[Annotated[str, AfterValidator(_variable)], Word] = {}
    workdir: Annotated[str, AfterValidator(_usable)] = Field(
        ".", min_length=1, description="folder that the command runs in"
    )
    on_signal: Literal["USR1", "USR2", "TERM", "INT", "none"] = Field(
        "none", description="what the command saves its state on"
    )
    metrics: Metrics | None = None


OWN_KEYS = tuple(CommandKeys.model_fields)
