"""The sections of a run's configuration: every setting with its type, default and documentation. Torch-free."""

from __future__ import annotations

import os
import re
from datetime import date
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from ablatrix.models.config import Size
from ablatrix.trainer.config import tokenizer_names
from ablatrix.trainer.config.paths import UserPath, expand_path

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(ge=0, le=1)]
# JSON and YAML have lists, but no tuples
Betas = Annotated[tuple[Beta, Beta], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)]
Blocks = Annotated[
    tuple[Size, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else (v,) if isinstance(v, int) else v)
]


def _listed(value: Any) -> Any:
    """Return a list as a tuple, and a single string as a tuple of one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def _importable(specs: tuple[str, ...]) -> tuple[str, ...]:
    for spec in specs:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", spec):
            raise ValueError(f"{spec!r} is not a class reference; write mypackage.mymodule:MyCallback")
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
        raise ValueError(f"{number} is too few; keep at least 2, in case the newest is corrupt")
    return number


def expand_name(name: str) -> str:
    """Return the name of a tokenizer or of weights, expanded by `expand_path` if it is a folder."""
    return expand_path(name) if tokenizer_names.is_folder(name) else name


# One path, or an ordered list of paths
Files = Annotated[
    str | tuple[str, ...],
    BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v, json_schema_input_type=str | list[str]),
    AfterValidator(lambda v: expand_path(v) if isinstance(v, str) else tuple(map(expand_path, v))),
]


def _device(name: str) -> str:
    if not re.fullmatch(DEVICE, name):
        raise ValueError(f"must be auto, cpu, mps, cuda or cuda:NUMBER, found {name!r}")
    return name


DEVICE = r"(auto|cpu|mps|cuda(:[0-9]+)?)"
Device = Annotated[str, AfterValidator(_device), Field(json_schema_extra={"pattern": f"^{DEVICE}$"})]
Texts = Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | list[str])]
Specs = Annotated[Texts, AfterValidator(_importable)]


def _held_out_size(size: int | float) -> int | float:
    if size < 0 or (isinstance(size, float) and not 0 < size < 1):
        raise ValueError(f"{size} is neither a number of documents nor a share of the lines, such as 0.01")
    return size


HeldOutSize = Annotated[int | float, AfterValidator(_held_out_size), Field(json_schema_extra={"minimum": 0})]
SHARE = r"[0-9]+(\.[0-9]+)? ?%"


class ShareOfRun(int):
    """A number of steps given as a share of the run, which scales with `max_iters`."""

    share: float

    def of(self, max_iters: int) -> ShareOfRun:
        """Return the number of steps for the same share of `max_iters`: at least one, but 0 for 0%."""
        found = ShareOfRun(max(1, round(self.share * max_iters)) if self.share else 0)
        found.share = self.share
        return found


def _in_steps(value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
    """Convert a share of the run, such as 10%, to steps; return other values unchanged."""
    if not (isinstance(value, str) and re.fullmatch(SHARE, value.strip())):
        return validate(value)
    share = ShareOfRun()
    share.share = float(value.strip().rstrip("% ")) / 100
    if share.share > 1:
        raise ValueError(f"{value} is more than the whole run; use at most 100%")
    steps = share.of(info.data.get("max_iters", 1))  # absent if invalid, which is reported separately
    validate(int(steps))
    return steps


Number = TypeVar("Number")
ShareText = Annotated[str, Field(pattern=f"^{SHARE}$")]
Steps = Annotated[Number, WrapValidator(_in_steps, json_schema_input_type=Count | ShareText)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """The corpus: one JSON object per line, the text under `text_key`."""

    files_setting: ClassVar[str] = "data.file_path"  # what messages call `file_path`

    file_path: Files = Field(
        "",
        description="corpus: JSON lines (.gz, .zst, .xz too), .parquet, .txt or .bin; a folder, a pattern, or a list",
    )
    split: Literal["train", "test"] = Field("train", description="documents to train on; test: the held-out ones")
    test_size: HeldOutSize = Field(
        10, description="last documents, held out for validation: a number, or a share of the lines such as 0.01"
    )
    test_file: Files = Field("", description="separate files of held-out documents, instead of test_size")
    block_size: Size = Field(256, description="tokens per training window")
    text_key: str = Field("text", min_length=1, description="key of the text in each line")
    text_files: Literal["auto", "documents", "blocks"] = Field(
        "auto", description=".txt: a document per file or per block between blank lines (auto: blocks of a single file)"
    )
    sampling: Literal["document", "packed", "stream"] = Field(
        "document",
        description="windows within one document; blocks packed with whole documents; or windows of one stream",
    )
    document_mask: bool = Field(
        False, description="packed, stream: attention and positions begin at each document, not at the row's start"
    )
    separator: Count | None = Field(
        None, description="token before each document, packed and stream (default: the tokenizer's end of text)"
    )
    domain_key: str = Field("", description="dotted key of each line's domain, such as meta.source (NLL by domain)")
    tokenizer: Annotated[str, AfterValidator(expand_name)] = Field(
        "gpt2",
        min_length=1,
        description="name in the offline cache (gpt2, sample, bytes, a hub id), or a folder with a tokenizer.json",
    )

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries of `file_path`: files, folders or patterns."""
        return (self.file_path,) if isinstance(self.file_path, str) else self.file_path

    @property
    def held_out(self) -> int | float:
        """What is held out of `file_path`: a number of documents or a share of the lines; 0 if `test_file` is set."""
        return 0 if self.test_file else self.test_size

    @property
    def test_corpus(self) -> DataConfig:
        """The corpus named by `test_file`, all of which is held out."""
        changed = {"file_path": self.test_file, "test_file": "", "test_size": 0}
        return HeldOutCorpus.model_construct(**{**dict(self), **changed})


class HeldOutCorpus(DataConfig):
    """The corpus named by `data.test_file`."""

    files_setting: ClassVar[str] = "data.test_file"


class TrainerConfig(Section):
    """Training. Intervals are in optimizer steps, or shares of the run such as 10%; 0 disables."""

    device: Device = Field("auto", description="auto: cuda, then mps, then cpu")
    num_workers: Count = Field(0, description="threads that prepare batches ahead; 0: none")
    max_iters: Size = Field(1000, description="optimizer steps")
    epochs: Positive | None = Field(
        None, description="instead of max_iters: passes over the documents that data.sampling can reach"
    )
    batch_size: Size = Field(8, description="windows per step")
    grad_accum: Size = Field(1, description="parts that a batch is split into, to save memory")
    dtype: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="dtype of matrix products; weights stay float32. auto: bfloat16 on a GPU that has it, else float32",
    )
    pipeline_split: Blocks = Field((), description="layers of each stage of a pipeline, as 5,4,3; default: by cost")
    pipeline_stages_per_rank: Size = Field(
        1, description="stages of a pipeline in each process, interleaved: less idle time, more communication"
    )
    activation_checkpointing: bool = Field(
        False, description="recompute blocks in the backward pass: less memory, more time, the same result"
    )
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
    momentum: Beta | None = Field(None, description="momentum of sgd (default: 0.9) and muon (default: 0.95)")
    nesterov: bool | None = Field(None, description="Nesterov momentum: sgd (default: no), muon (default: yes)")
    ns_steps: Annotated[int, Field(ge=1, le=20)] = Field(5, description="muon's Newton-Schulz steps")
    beta2_decay: Annotated[float, Field(ge=-2, lt=0)] = Field(
        -0.8, description="adafactor averages squares with 1 - t^beta2_decay"
    )
    update_clip: Positive = Field(1.0, description="largest RMS of adafactor's updates")
    weight_decay: NonNegative = Field(0.1, description="weight decay, on matrix weights only; in sgd, an L2 penalty")
    grad_norm_clip: NonNegative = Field(1.0, description="largest gradient norm; 0: no clipping")
    warmup_steps: Count = Field(0, description="steps of linear warm-up from 0")
    schedule: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd", "infinite"] | None = Field(
        None,
        description="after warm-up: constant, cosine, linear, inverse_sqrt, wsd, infinite (default: constant)",
    )
    use_cosine: bool | None = Field(None, description="short form of schedule=cosine (default: as schedule says)")
    min_lr_ratio: Ratio = Field(0.1, description="final rate / learning_rate, for cosine, linear, wsd and infinite")
    decay_steps: Count | None = Field(None, description="wsd: final steps that decay (default: 10% after warm-up)")
    decay_shape: Literal["sqrt", "linear"] = Field("sqrt", description="wsd: decay by 1 - sqrt or linear")
    cooldown_steps: Count | None = Field(
        None, description="infinite: steps of cosine from the peak to the constant rate (default: 60% after warm-up)"
    )
    constant_lr_ratio: Annotated[float, Field(gt=0, le=1)] = Field(
        0.55, description="infinite: constant rate / learning_rate"
    )
    anneal_steps: Count | None = Field(
        None, description="infinite: final steps of exponential annealing (default: 15% after warm-up)"
    )
    log_interval: Steps[Size] = Field(10, description="steps between rows of loss.csv")
    eval_interval: Steps[Count] = Field(
        500, description="steps between evaluations of the held-out set (and at the end), or a share such as 10%"
    )
    eval_tokens: Size = Field(
        65536,
        description="most held-out tokens evaluated; exactly this many with test_file or a share as test_size",
    )
    eval_blocks: Blocks = Field((), description="context lengths evaluated at the end: 256,512,1024; default: none")
    ckpt_interval: Steps[Count] = Field(500, description="steps between checkpoints (and at the end)")
    sample_interval: Steps[Count] = Field(0, description="steps between samples of generated text, from step 0 on")
    sample_prompt: Texts = Field(("The",), min_length=1, description="prompt of the samples, or a list of prompts")
    save_total_limit: Annotated[int, AfterValidator(_two_at_least)] = Field(2, description="newest checkpoints to keep")
    save_best: bool = Field(False, description="keep the weights of the best evaluation in best.pt")
    early_stop_patience: Count = Field(0, description="evaluations without improvement that end the run; 0: never")
    early_stop_min_delta: NonNegative = Field(0.0, description="smallest improvement that counts, in nats")
    resume: str = Field(
        "auto",
        min_length=1,
        description="auto: newest good checkpoint; none: from step 0; or a checkpoint, or a run's folder",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainerConfig:
        if self.epochs is not None and "max_iters" in self.model_fields_set:
            raise ValueError(f"epochs: {self.epochs:g} and max_iters: {self.max_iters} are both set; leave one out")
        return self


class SystemConfig(Section):
    """Folders and seed."""

    work_dir: UserPath = Field("out/run", min_length=1, description="run folder")
    cache_dir: UserPath = Field(
        default_factory=lambda: os.environ.get("ABLATRIX_CACHE") or ".cache/ablatrix",
        validate_default=True,
        min_length=1,
        description="offline cache of tokenizers and tokens (default: $ABLATRIX_CACHE, else .cache/ablatrix)",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(3407, description="seed of weights, batches and dropout")


class CallbacksConfig(Section):
    """Additional outputs and warnings. Only `custom` may change the training."""

    jsonl: bool = Field(False, description="also write the rows of loss.csv as JSON lines to metrics.jsonl")
    tensorboard: bool = Field(False, description="event files in tensorboard/, if the package is installed")
    wandb: bool = Field(False, description="Weights & Biases, offline unless WANDB_MODE says otherwise")
    wandb_project: str = Field("ablatrix", min_length=1, description="project of the W&B runs")
    watch_grad_norm: NonNegative = Field(10.0, description="warn above this many running medians of grad_norm; 0: off")
    watch_loss: NonNegative = Field(10.0, description="warn if loss is this many deviations above its median; 0: off")
    custom: Specs = Field((), description="your own callbacks: mypackage.mymodule:MyCallback, or a list of them")


class InfoConfig(Section):
    """A description of the experiment for logs and reports."""

    name: str = Field("", description="name of the experiment")
    description: str = Field("", description="what the experiment does")
    date: Annotated[str, AfterValidator(_calendar_date)] = Field("", description="YYYY-MM-DD")
    hypothesis: str = Field("", description="expected outcome")

    def line(self) -> str:
        """Return the whole section as one line, '' if nothing is set."""
        head = " ".join(filter(None, (self.name, f"({self.date})" if self.date else "")))
        hypothesis = f"hypothesis: {self.hypothesis}" if self.hypothesis else ""
        text = "; ".join(" ".join(part.split()) for part in (head, self.description, hypothesis) if part)
        return f"experiment: {text}" if text else ""
