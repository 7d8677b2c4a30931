"""The whole configuration of one run: how it is resolved, and what identifies it. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

from pydantic import Field, field_validator

from ablatrix.models.config import GPTConfig
from ablatrix.trainer.config import optimization, run_hash, tokenizer_names
from ablatrix.trainer.config.cross_checks import find_contradictions
from ablatrix.trainer.config.sections import (
    CallbacksConfig,
    DataConfig,
    InfoConfig,
    Section,
    ShareOfRun,
    SystemConfig,
    TrainerConfig,
    expand_name,
)
from ablatrix.trainer.rundir.errors import ConfigError, UserError

# Settings that cannot change loss.csv or the final evaluation: paths, restarting, and additional outputs
NEUTRAL: dict[str, Any] = {
    "data": {"domain_key"},
    "system": {"work_dir", "cache_dir"},
    "trainer": {
        *("resume", "num_workers", "ckpt_interval", "save_total_limit", "save_best"),
        *("sample_interval", "sample_prompt"),
        *("strategy", "pipeline_schedule", "pipeline_microbatches", "pipeline_split"),
        "pipeline_stages_per_rank",
        "activation_checkpointing",
    },
    "info": True,
    "callbacks": set(CallbacksConfig.model_fields) - {"custom"},  # a custom callback may change the training
}
INTERVALS = ("log_interval", "eval_interval", "ckpt_interval", "sample_interval")

# Settings that were added later. At their defaults they are left out of hashes, so that older runs keep their hashes
ADDED: dict[str, tuple[str, ...]] = {
    "data": ("text_files", "sampling", "document_mask", "separator", "test_file"),
    "model": ("init_from",),
    "trainer": ("epochs",),
}


class RunConfig(Section):
    """The whole configuration of one run."""

    data: DataConfig = DataConfig()
    model: GPTConfig = GPTConfig()
    trainer: TrainerConfig = TrainerConfig()
    system: SystemConfig = Field(default_factory=SystemConfig)
    callbacks: CallbacksConfig = CallbacksConfig()
    info: InfoConfig = InfoConfig()

    @field_validator("model")
    @classmethod
    def _expand_init_from(cls, model: GPTConfig) -> GPTConfig:
        return model.model_copy(update={"init_from": expand_name(model.init_from)}) if model.init_from else model

    def resolved(self, vocab_size: int, end_of_text: int | None = None) -> RunConfig:
        """Return the configuration with every size and phase explicit, so that config.json alone reproduces the run.

        vocab_size: number of tokens of the tokenizer; end_of_text: id of the token between documents, None without one.
        Raises ConfigError if settings contradict each other.
        """
        model, data = self.model.resolved(vocab_size, self.data.block_size), self.data
        if data.sampling != "document" and data.separator is None:
            data = data.model_copy(update={"separator": end_of_text})
        problems = list(find_contradictions(data, model, self.trainer, vocab_size))
        if problems:
            raise ConfigError(problems)
        return self.model_copy(update={"data": data, "model": model, "trainer": optimization.settled(self.trainer)})

    def with_steps(self, rows_per_epoch: Callable[[RunConfig], float]) -> RunConfig:
        """Return the configuration with trainer.epochs converted to trainer.max_iters.

        rows_per_epoch: returns the number of batch rows in one pass over the training documents. Raises ConfigError
        if it fails.
        """
        epochs = self.trainer.epochs
        if epochs is None:
            return self
        try:
            rows = rows_per_epoch(self)
        except UserError as error:
            raise ConfigError([f"trainer.epochs: {error}"]) from None
        steps = max(1, math.ceil(epochs * rows / self.trainer.batch_size - 1e-9))
        given = {name: getattr(self.trainer, name) for name in INTERVALS}
        shares = {name: value.of(steps) for name, value in given.items() if isinstance(value, ShareOfRun)}
        trainer = self.trainer.model_copy(update={"epochs": None, "max_iters": steps, **shares})
        return self.model_copy(update={"trainer": trainer})

    def identity(self) -> dict[str, Any]:
        """Return the settings that determine the result; two spellings of a setting give the same identity."""
        found = self.model_dump(mode="json", exclude=NEUTRAL)
        found["data"]["file_path"] = _places(self.data.file_path)
        if self.data.test_file:
            found["data"]["test_file"] = _places(self.data.test_file)
            del found["data"]["test_size"]  # not read
        if self.data.sampling != "document":
            found["data"]["held_out_begin"] = "separator"  # earlier versions began with the document's first token
        found["data"]["tokenizer"] = _name_or_place(self.data.tokenizer)
        if self.model.init_from:
            found["model"]["init_from"] = _name_or_place(self.model.init_from)
        if None not in (self.model.n_layer, self.model.n_head, self.model.n_embd):
            del found["model"]["model_type"]  # only a name for the sizes
        found["trainer"]["device"] = found["trainer"]["device"].partition(":")[0]
        if self.trainer.schedule is not None:
            del found["trainer"]["use_cosine"]  # short form of `schedule`
        if not self.trainer.early_stop_patience:
            del found["trainer"]["early_stop_min_delta"]  # not read
        return found

    def identity_until(self, step: int) -> dict[str, Any]:
        """Return the settings that determine the first `step` steps of a resolved configuration.

        Left out are the corpus and the tokenizer, which checkpoints identify by content, and trainer.max_iters if the
        learning rates up to this step do not depend on it.
        """
        found = self.identity()
        found["data"]["test_file"] = ""
        del found["data"]["file_path"], found["data"]["tokenizer"], found["trainer"]["eval_blocks"]
        if step <= optimization.steady_until(self.trainer):
            for name in ("max_iters", *optimization.END_SETTINGS):
                del found["trainer"][name]
        return found

    def fingerprint(self) -> str:
        """Return the first 8 hex digits of the SHA-256 of `identity()`."""
        return self._digest(self.identity())

    def fingerprint_by_seed(self) -> Callable[[int], str]:
        """Return a function from a seed to the fingerprint of this configuration with it."""
        return run_hash.digest_by_seed(self._without_added(self.identity()))

    def with_seed(self, seed: int) -> Self:
        """Return the same configuration with this seed."""
        return self.model_copy(update={"system": self.system.model_copy(update={"seed": seed})})

    def fingerprint_until(self, step: int) -> str:
        """Return the fingerprint of `identity_until(step)`; two runs with equal ones can share checkpoints up to it."""
        return self._digest(self.identity_until(step))

    def _digest(self, identity: dict[str, Any]) -> str:
        return run_hash.digest(self._without_added(identity))

    def _without_added(self, identity: dict[str, Any]) -> dict[str, Any]:
        for section, names in ADDED.items():
            fields = type(getattr(self, section)).model_fields
            for name in names:
                if identity[section][name] == fields[name].default:
                    del identity[section][name]
        return identity

    def to_json(self) -> str:
        """Return the content of config.json."""
        return self.model_dump_json(indent=2) + "\n"


def _name_or_place(name: str) -> str:
    return run_hash.normalize_path(name) if tokenizer_names.is_folder(name) else tokenizer_names.canonical(name)


def _places(path: str | tuple[str, ...]) -> str | list[str]:
    places = [run_hash.normalize_path(entry) for entry in ([path] if isinstance(path, str) else path)]
    return places[0] if len(places) == 1 else places
