"""The configuration of one run: schema, command line, resolution and fingerprint. Free of torch."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ablatrix.models.config import SHORT_FORMS, GPTConfig, Size
from ablatrix.trainer.config import field_errors, optimization, run_hash
from ablatrix.trainer.config.paths import UserPath, expand_path
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.rundir.errors import ConfigError, UserError
from ablatrix.trainer.rundir.files import read_bytes

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(ge=0, le=1)]
# JSON and YAML know lists only
Betas = Annotated[tuple[Beta, Beta], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)]
Blocks = Annotated[
    tuple[Size, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else (v,) if isinstance(v, int) else v)
]


def _listed(value: Any) -> Any:
    """A single text stands for a list of one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _importable(specs: tuple[str, ...]) -> tuple[str, ...]:
    for spec in specs:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", spec):
            raise ValueError(f"{spec!r} names no class; write mypackage.mymodule:MyCallback")
    return specs


def _calendar_date(text: str) -> str:
    if text:
        try:
            date.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a date; write YYYY-MM-DD") from None
    return text


def _two_at_least(number: int) -> int:
    if number < 2:
        raise ValueError(f"{number} is too few; keep 2 at least: should the newest be damaged, the other one is needed")
    return number


def _expand_each(value: str | tuple[str, ...]) -> str | tuple[str, ...]:
    return expand_path(value) if isinstance(value, str) else tuple(map(expand_path, value))


# One path, or several in their order
Files = Annotated[
    str | tuple[str, ...],
    BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v, json_schema_input_type=str | list[str]),
    AfterValidator(_expand_each),
]


def _device(name: str) -> str:
    if not re.fullmatch(DEVICE, name):
        raise ValueError(f"must be auto, cpu, mps, cuda or cuda:NUMBER, found {name!r}")
    return name


DEVICE = r"(auto|cpu|mps|cuda(:[0-9]+)?)"
Device = Annotated[str, AfterValidator(_device), Field(json_schema_extra={"pattern": f"^{DEVICE}$"})]
Texts = Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])]
Specs = Annotated[Texts, AfterValidator(_importable)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """What is read: one JSON object per line, the text under `text_key`."""

    file_path: Files = Field(
        "",
        description="corpus: a file of JSON lines (.gz, .zst, .xz too) or .bin; a folder, a pattern, or a list of them",
    )
    split: Literal["train", "test"] = Field("train", description="documents trained on; test: the held-out ones")
    test_size: Count = Field(10, description="last documents, held out for validation")
    block_size: Size = Field(256, description="tokens of a training window")
    text_key: str = Field("text", min_length=1, description="key of the text in each line")
    tokenizer: str = Field("gpt2", min_length=1, description="name in the offline cache: gpt2, sample, or a hub id")


class TrainerConfig(Section):
    """How it is trained. Intervals are in optimiser steps; 0 switches the thing off."""

    device: Device = Field("auto", description="auto: cuda, then mps, then cpu")
    num_workers: Count = Field(0, description="threads that prepare batches ahead; 0: none")
    max_iters: Size = Field(1000, description="optimiser steps")
    batch_size: Size = Field(8, description="windows per step")
    grad_accum: Size = Field(1, description="parts that a batch is worked through in, to save memory")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of matrix products; weights stay float32")
    compile: bool = Field(False, description="one process on a GPU: compiled kernels, steps as CUDA graphs")
    strategy: Literal["single", "ddp", "fsdp", "pipeline"] = Field(
        "single", description="what the processes of a job share: ddp, the batch; fsdp, memory too; pipeline, layers"
    )
    pipeline_schedule: Literal["gpipe", "1f1b"] = Field("1f1b", description="order of a pipeline's micro-batches")
    pipeline_microbatches: Count = Field(0, description="parts of a batch in a pipeline; 0: as many as processes")
    optimizer: Literal["adamw", "sgd", "muon", "adafactor"] = Field(
        "adamw", description="adamw, sgd, adafactor, or muon (matrices of the blocks; adamw does the rest)"
    )
    learning_rate: Positive = Field(3e-4, description="peak learning rate; adafactor's is relative, such as 1e-2")
    betas: Betas = Field((0.9, 0.95), description="betas of adamw, also within muon")
    momentum: Beta | None = Field(None, description="of sgd (default: 0.9) and muon (default: 0.95)")
    nesterov: bool | None = Field(None, description="Nesterov's form of it: sgd (default: no), muon (default: yes)")
    ns_steps: Annotated[int, Field(ge=1, le=20)] = Field(5, description="muon's Newton-Schulz steps")
    beta2_decay: Annotated[float, Field(ge=-2, lt=0)] = Field(
        -0.8, description="adafactor averages squares with 1 - t^beta2_decay"
    )
    update_clip: Positive = Field(1.0, description="largest root mean square of adafactor's updates")
    weight_decay: NonNegative = Field(0.1, description="on matrix weights only; sgd's is an L2 penalty")
    grad_norm_clip: NonNegative = Field(1.0, description="largest gradient norm; 0: no clipping")
    warmup_steps: Count = Field(0, description="steps of linear warm-up from 0")
    schedule: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd", "infinite"] | None = Field(
        None,
        description="after warm-up: constant, cosine, linear, inverse_sqrt, wsd, infinite (default: constant)",
    )
    use_cosine: bool | None = Field(None, description="short form of schedule=cosine (default: as schedule says)")
    min_lr_ratio: Ratio = Field(0.1, description="last rate / learning_rate, of cosine, linear, wsd and infinite")
    decay_steps: Count | None = Field(None, description="wsd: last steps, which decay (default: 10% after warm-up)")
    decay_shape: Literal["sqrt", "linear"] = Field("sqrt", description="wsd: decay by 1 - sqrt or linear")
    cooldown_steps: Count | None = Field(
        None, description="infinite: steps of cosine from the peak to the constant rate (default: 60% after warm-up)"
    )
    constant_lr_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        0.55, description="infinite: constant rate / learning_rate"
    )
    anneal_steps: Count | None = Field(
        None, description="infinite: last steps, annealed exponentially (default: 15% after warm-up)"
    )
    log_interval: Size = Field(10, description="steps between rows of loss.csv")
    eval_interval: Count = Field(500, description="steps between evaluations of the held-out set (and at the end)")
    eval_tokens: Size = Field(65536, description="held-out tokens evaluated, at most")
    eval_blocks: Blocks = Field((), description="context lengths evaluated at the end, as 256,512,1024; default: none")
    ckpt_interval: Count = Field(500, description="steps between checkpoints (and at the end)")
    sample_interval: Count = Field(0, description="steps between samples of generated text")
    sample_prompt: Texts = Field(("The",), min_length=1, description="what samples start with: a text, or a list")
    save_total_limit: Annotated[int, AfterValidator(_two_at_least)] = Field(2, description="newest checkpoints kept")
    save_best: bool = Field(False, description="keep the weights of the best evaluation in best.pt")
    early_stop_patience: Count = Field(0, description="evaluations without improvement that end the run; 0: never")
    early_stop_min_delta: NonNegative = Field(0.0, description="nats that count as an improvement")
    resume: str = Field("auto", min_length=1, description="auto: newest good checkpoint; none: start anew; or a file")


class SystemConfig(Section):
    """Where it runs, and the seed."""

    work_dir: UserPath = Field("out/run", min_length=1, description="run folder")
    cache_dir: UserPath = Field(
        default_factory=lambda: os.environ.get("ABLATRIX_CACHE") or ".cache/ablatrix",
        validate_default=True,
        min_length=1,
        description="offline cache of tokenizers and tokens (default: $ABLATRIX_CACHE, else .cache/ablatrix)",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(3407, description="seed of weights, batches and dropout")


class CallbacksConfig(Section):
    """What else a run writes, and what it warns of. Only `custom` may touch the training."""

    jsonl: bool = Field(False, description="rows of loss.csv as JSON lines in metrics.jsonl too")
    tensorboard: bool = Field(False, description="event files in tensorboard/, where that package is installed")
    wandb: bool = Field(False, description="Weights & Biases, offline unless WANDB_MODE says otherwise")
    wandb_project: str = Field("ablatrix", min_length=1, description="project of the W&B runs")
    watch_grad_norm: NonNegative = Field(10.0, description="warn at a grad_norm of so many running medians; 0: off")
    watch_loss: NonNegative = Field(10.0, description="warn at a loss so many deviations over its median; 0: off")
    custom: Specs = Field((), description="your own callbacks: mypackage.mymodule:MyCallback, or a list of them")


class InfoConfig(Section):
    """What the experiment is about, for people: goes into logs and reports."""

    name: str = Field("", description="of the experiment")
    description: str = Field("", description="what is done")
    date: Annotated[str, AfterValidator(_calendar_date)] = Field("", description="YYYY-MM-DD")
    hypothesis: str = Field("", description="what is expected")

    def line(self) -> str:
        """All of it in one line, '' where nothing was given."""
        head = " ".join(filter(None, (self.name, f"({self.date})" if self.date else "")))
        hypothesis = f"hypothesis: {self.hypothesis}" if self.hypothesis else ""
        told = "; ".join(" ".join(text.split()) for text in (head, self.description, hypothesis) if text)
        return f"experiment: {told}" if told else ""


class RunConfig(Section):
    """The whole configuration of one run."""

    data: DataConfig = DataConfig()
    model: GPTConfig = GPTConfig()
    trainer: TrainerConfig = TrainerConfig()
    system: SystemConfig = Field(default_factory=SystemConfig)
    callbacks: CallbacksConfig = CallbacksConfig()
    info: InfoConfig = InfoConfig()

    def resolved(self, vocab_size: int) -> RunConfig:
        """Every size and phase written out, so that the run can be repeated from config.json alone.

        vocab_size: the tokenizer's number of tokens. Raises ConfigError where data and model contradict each other.
        """
        model = self.model.resolved(vocab_size, self.data.block_size)
        problems = []
        if not self.data.file_path:
            problems.append("data.file_path: missing; give the path of a JSONL file")
        if self.data.block_size > model.block_size:
            problems.append(
                f"data.block_size: {self.data.block_size} is over the model's block_size {model.block_size}; "
                "lower data.block_size or raise model.block_size"
            )
        if model.vocab_size < vocab_size:
            problems.append(
                f"model.vocab_size: {model.vocab_size} is under the {vocab_size} tokens of "
                f"tokenizer {self.data.tokenizer!r}; leave it out"
            )
        if self.trainer.grad_accum > self.trainer.batch_size:
            problems.append(
                f"trainer.grad_accum: {self.trainer.grad_accum} is over trainer.batch_size {self.trainer.batch_size}; "
                "a part must hold at least one window"
            )
        if self.trainer.early_stop_patience and not (self.trainer.eval_interval and self.data.test_size):
            problems.append(
                "trainer.early_stop_patience: counts evaluations of the held-out set, and there are none; set "
                "trainer.eval_interval and data.test_size"
            )
        lengths = self.trainer.eval_blocks
        if lengths and min(lengths) > model.block_size and not model.extrapolates:
            problems.append(
                f"trainer.eval_blocks: {model.positions} positions end at block_size {model.block_size}, so none of "
                f"{', '.join(map(str, lengths))} can be evaluated; add {model.block_size}, or choose other positions"
            )
        problems += optimization.problems(self.trainer)
        if problems:
            raise ConfigError(problems)
        return self.model_copy(update={"model": model, "trainer": optimization.settled(self.trainer)})

    def identity(self) -> dict[str, Any]:
        """Return what decides the result; two spellings of one setting give the same."""
        return run_hash.whole(self)

    def identity_until(self, step: int) -> dict[str, Any]:
        """Return what decides the first `step` steps of a resolved configuration, the files it reads aside."""
        return run_hash.until(self, step)

    def fingerprint(self) -> str:
        """Return the first 8 hex digits of the SHA-256 of `identity()`."""
        return run_hash.digest(self.identity())

    def fingerprint_until(self, step: int) -> str:
        """Return the same of `identity_until(step)`: equal where a checkpoint of one run serves another."""
        return run_hash.digest(self.identity_until(step))

    def to_json(self) -> str:
        """config.json's text."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def keys() -> Iterator[tuple[str, Any]]:
    """(dotted key, pydantic field) of every setting, in order."""
    for section, field in RunConfig.model_fields.items():
        annotation: Any = field.annotation
        for name, inner in annotation.model_fields.items():
            yield f"{section}.{name}", inner


def validate(tree: dict[str, Any], strict: bool = True) -> RunConfig:
    """A nested dict as RunConfig. Raises ConfigError with one `key: fault` line per problem.

    strict: a number in quotes is a wrong type (files); else it is converted (command lines).
    """
    try:
        return RunConfig.model_validate(tree, strict=strict)
    except ValidationError as error:
        found = field_errors.by_place(error.errors(), tree)
        raise ConfigError([_explain(path, errors) for path, errors in found]) from None


def _explain(path: field_errors.Path, errors: Sequence[Any]) -> str:
    place, entry = field_errors.split_entry(path)
    key = ".".join(place)
    if errors[0]["type"] == "extra_forbidden":
        known = [k for k, _ in keys()]
        return f"{key}: unknown key{nearest(key, known if len(path) > 1 else list(RunConfig.model_fields))}"
    return f"{key}: {entry}{field_errors.describe(errors, field_errors.field_at(RunConfig, place))}"


def load(path: str | Path) -> RunConfig:
    """Read a config.json. Raises UserError (unreadable, not JSON) or ConfigError (wrong keys or types)."""
    return validate(_read_tree(Path(path)))


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(read_bytes(path).decode("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: not a run's configuration: the top level must be an object")
    return tree


def from_flags(argv: Sequence[str]) -> RunConfig:
    """Parse `--a.b=c`, `--a.b c` and `--config FILE` (flags win over the file, later flags over earlier ones).

    Raises ConfigError naming every flag that is unknown or has a value of the wrong type.
    """
    flags = list(_split_flags(argv))
    tree: dict[str, Any] = {}
    for key, value in flags:
        if key == "config":
            tree = validate(_read_tree(Path(value))).model_dump()
    _give_way(tree, {key for key, _ in flags})
    known = dict(keys())
    problems = []
    for key, value in flags:
        if key == "config":
            continue
        if key not in known:
            problems.append(f"--{key}: unknown flag{nearest(key, list(known))}")
            continue
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = parse_value(value, known[key].annotation)
    if problems:
        raise ConfigError(problems)
    try:
        return validate(tree, strict=False)
    except ConfigError as error:
        given = {key for key, _ in flags}
        told = [f"--{fault}" if fault.partition(":")[0] in given else fault for fault in error.problems]
        raise ConfigError(told) from None


def _give_way(tree: dict[str, Any], flagged: set[str]) -> None:
    """Drop what the file says in other words than the flags: `--model.rope=true` wins over its `positions: learned`."""
    for section, groups in (("model", SHORT_FORMS.items()), ("trainer", optimization.TOGETHER)):
        for deciding, *following in groups:
            if any(f"{section}.{name}" in flagged for name in (deciding, following[0])):
                for name in (deciding, *following):
                    tree.get(section, {}).pop(name, None)


def _split_flags(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError([f"{word!r}: not a flag; flags look like --section.name=value"])
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise ConfigError([f"--{key}: value missing; write --{key}=value"])
            value = words.pop(0)
        yield key, value


def parse_value(text: str, annotation: Any) -> Any:
    """A flag's text for pydantic: None and tuples are read here, the rest is pydantic's."""
    if text.lower() in ("none", "null") and type(None) in getattr(annotation, "__args__", ()):
        return None
    if annotation in (tuple[str, ...], str | tuple[str, ...]) and text[:1] not in ("(", "["):
        return text
    if "tuple" in str(annotation):
        try:
            return ast.literal_eval(text if text[:1] in "([" else f"({text})")
        except (ValueError, SyntaxError):
            return text
    return text
