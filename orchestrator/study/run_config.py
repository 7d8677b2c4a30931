"""What trains a run: our trainer, or a command of the user's. All that the orchestrator asks of a configuration.

A RunConfig knows its model and its data; of a command's free settings nothing is known but what `metrics:` says, and
whatever is not known is None here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.models.config import count_parameters
from ablatrix.models.config import flops_per_token as model_flops
from ablatrix.orchestrator.study import dotted
from ablatrix.orchestrator.study.command_config import CommandConfig
from ablatrix.orchestrator.study.metric import Measure
from ablatrix.trainer.config import RunConfig, optimization, validate
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.experiment import Experiment

Config = RunConfig | CommandConfig


def resolve(experiment: Experiment, settings: Mapping[str, Any], vocab_size: Callable[[RunConfig], int]) -> Config:
    """The whole configuration that these settings (dotted key -> value) give. Raises ConfigError."""
    if experiment.command:
        about = {key.partition(".")[2]: text for key, text in experiment.info.items()}
        return CommandConfig(dict(settings), experiment, info=about)
    config = validate(dotted.nest({**settings, **experiment.info}))
    return config.resolved(vocab_size(config))


def seeded(config: Config, seed: int) -> Config:
    """The same configuration with another seed."""
    if isinstance(config, CommandConfig):
        return config.with_seed(seed)
    return config.model_copy(update={"system": config.system.model_copy(update={"seed": seed})})


def shortened(config: Config, steps: int) -> Config:
    """The same configuration, trained for a few steps only: for smoke tests."""
    if isinstance(config, CommandConfig):
        return config.shortened(steps)
    trainer = config.trainer
    update = {**optimization.shortened(trainer, steps), "log_interval": 1, "eval_tokens": 1}
    return config.model_copy(update={"trainer": trainer.model_copy(update=update)})


def files(config: Config, folder: Path, cell: str) -> dict[str, str]:
    """What a job needs in a run's folder: name -> content; config.json comes last, which says that all are there."""
    if isinstance(config, CommandConfig):
        return config.files(folder, cell)
    system = config.system.model_copy(update={"work_dir": str(folder)})
    return {run_files.CONFIG: config.model_copy(update={"system": system}).to_json()}


def info(config: Config) -> dict[str, str]:
    """What `experiment_info` says about the study."""
    said = config.info if isinstance(config, CommandConfig) else config.info.model_dump()
    return {key: text for key, text in said.items() if text}


def measure(config: Config) -> Measure:
    """What the runs of a study are compared by."""
    return config.measure if isinstance(config, CommandConfig) else Measure()


def as_tree(config: Config) -> dict[str, Any]:
    """The configuration as it stands in config.json, without its place."""
    if isinstance(config, CommandConfig):
        tree: dict[str, Any] = json.loads(config.to_json())
        return tree
    return config.model_dump(mode="json")


def ours(config: Config) -> RunConfig:
    """The configuration of our trainer. Raises UserError for a command's."""
    if isinstance(config, CommandConfig):
        raise UserError("the runs of this study are a command, of whose training only the settings are known")
    return config


def steps(config: Config) -> int | None:
    """Optimiser steps of the run."""
    return config.steps if isinstance(config, CommandConfig) else config.trainer.max_iters


def tokens(config: Config) -> int | None:
    """Training tokens of the run."""
    if isinstance(config, CommandConfig):
        return config.tokens
    return config.trainer.max_iters * config.trainer.batch_size * config.data.block_size


def parameters(config: Config) -> int | None:
    """Trained parameters."""
    return None if isinstance(config, CommandConfig) else count_parameters(config.model)


def flops_per_token(config: Config) -> int | None:
    """Training FLOPs per token."""
    return None if isinstance(config, CommandConfig) else model_flops(config.model)
