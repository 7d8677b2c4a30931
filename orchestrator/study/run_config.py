"""What the orchestrator needs from a run's configuration, whether for our trainer or for a command.

For a command, only its settings and what `metrics:` says are known; everything else is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from ablatrix.orchestrator.study import dotted
from ablatrix.orchestrator.study.command_config import CommandConfig
from ablatrix.orchestrator.study.trainer_config import TrainerRunConfig
from ablatrix.trainer.config import RunConfig, validate
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.experiment import Experiment
    from ablatrix.orchestrator.study.metric import Measure
    from ablatrix.orchestrator.study.slurm_settings import SlurmSettings


class Config(Protocol):
    """The resolved configuration of a run."""

    def fingerprint(self) -> str:
        """Return the first 8 hex digits of the SHA-256 of everything that affects the result."""

    def fingerprint_by_seed(self) -> Callable[[int], str]:
        """Return a function from a seed to the fingerprint of this configuration with it."""

    def with_seed(self, seed: int) -> Self:
        """Return the same configuration with this seed."""

    def shortened(self, steps: int) -> Self:
        """Return the same configuration trained for only a few steps, for smoke tests."""

    def files(self, places: Iterable[tuple[int, Path]], cell: str) -> Iterator[dict[str, str]]:
        """Yield the files that a job needs in a run's folder, name -> content; config.json is last.

        places: the seed and the folder of each run.
        """

    def to_json(self) -> str:
        """Return config.json as a string."""

    def as_tree(self) -> dict[str, Any]:
        """Return the content of config.json, without the run's folder."""

    def flat(self, folder: Path | None = None) -> dict[str, Any]:
        """Return dotted key -> value, in order. folder: the run's folder, if known."""

    @property
    def about(self) -> dict[str, str]:
        """`experiment_info` of the study."""

    @property
    def measure(self) -> Measure:
        """The measure by which the runs of a study are compared."""

    @property
    def steps(self) -> int | None:
        """Optimizer steps."""

    @property
    def tokens(self) -> int | None:
        """Training tokens."""

    @property
    def parameters(self) -> int | None:
        """Number of trained parameters."""

    @property
    def flops_per_token(self) -> int | None:
        """Training FLOPs per token."""

    def sharing_problems(self, slurm: SlurmSettings) -> list[str]:
        """Return why the processes of a job cannot share this run."""


Vocabulary = Callable[[RunConfig], tuple[int, int | None]]  # vocabulary size and end-of-text token


FollowCorpus = Callable[[RunConfig], RunConfig]  # see trainer.data.corpus_settings


def without_corpus(config: RunConfig) -> RunConfig:
    """Return the configuration without reading a corpus. Raises ConfigError for epochs, which cannot be counted."""

    def refuse(_: RunConfig) -> float:
        raise UserError("the corpus is not read here; set trainer.max_iters")

    return config.with_steps(refuse)


def resolve(
    experiment: Experiment,
    settings: Mapping[str, Any],
    vocabulary: Vocabulary,
    follow_corpus: FollowCorpus = without_corpus,
) -> Config:
    """Return the configuration with these settings (dotted key -> value). Raise ConfigError."""
    if experiment.command:
        about = {key.partition(".")[2]: text for key, text in experiment.info.items()}
        return CommandConfig(dict(settings), experiment, about=about)
    config = follow_corpus(validate(dotted.nest({**settings, **experiment.info})))
    return TrainerRunConfig.model_construct(**dict(config.resolved(*vocabulary(config))))


def require_trainer(config: Config) -> TrainerRunConfig:
    """Return the configuration if it is our trainer's. Raise UserError if it is a command's."""
    if not isinstance(config, TrainerRunConfig):
        raise UserError("this study runs an external command, so only its training settings are known")
    return config
