"""One run in several processes: which of them this one is, and how they share the work. Free of torch.

The processes are told their places as torchrun tells them: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. The
job's task (orchestrator/job/task.py) and `python -m torch.distributed.run -m trainer ...` both do so. Only rank 0
writes files. What the processes of a run owe each other is in process_group.py, how they share the work in single.py and
in the file of each strategy.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.rundir.errors import ConfigError, RunError, UserError
from ablatrix.trainer.rundir.run_files import EXIT_LOST_PEER

if TYPE_CHECKING:
    import torch

    from ablatrix.trainer.distributed.process_group import Team
    from ablatrix.trainer.distributed.single import Single

# What torch says when a process at the other end of a connection is gone or silent
WORDS = ("gloo/transport", "gloo::", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
WHOLE_MATRICES = ("muon", "adafactor")  # optimisers that need them
STRATEGIES = {
    "ddp": ("ddp", "DataParallel"),
    "fsdp": ("fsdp", "FullySharded"),
    "pipeline": ("pipeline", "Pipeline"),
}
NAMES = ("DistBackendError", "DistNetworkError", "DistStoreError")


class PeerLostError(RunError):
    """Another process of the run has ended, or does not answer."""

    exit_code = EXIT_LOST_PEER


def is_lost_peer(error: BaseException) -> bool:
    """Does this error say that another process of the run is gone?"""
    if isinstance(error, PeerLostError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ in NAMES or any(words in str(error) for words in WORDS)


def lost(error: BaseException) -> PeerLostError:
    """The error that the user is to see instead of torch's."""
    if isinstance(error, PeerLostError):
        return error
    words = str(error).strip().splitlines()
    return PeerLostError(
        f"another process of this run has ended or does not answer ({words[0][:120] if words else 'no reason'}); its "
        "own output says why. Start the same command again: the run goes on from its last checkpoint"
    )


@dataclass(frozen=True)
class Place:
    """Which of the run's processes this one is."""

    rank: int = 0  # among all
    world: int = 1  # processes of the run
    local_rank: int = 0  # among those of this machine

    @classmethod
    def of(cls, config: RunConfig, environ: Mapping[str, str] = os.environ) -> Place:
        """Raises UserError where the environment does not fit together, or not with `trainer.strategy`."""
        if "WORLD_SIZE" not in environ:
            return cls()
        try:
            rank, world = int(environ["RANK"]), int(environ["WORLD_SIZE"])
            place = cls(rank, world, int(environ.get("LOCAL_RANK", "0")))
        except (KeyError, ValueError):
            raise UserError("WORLD_SIZE is set, but RANK is not a number: start the processes with torchrun") from None
        if place.world > 1 and config.trainer.strategy == "single":
            raise UserError(
                f"{place.world} processes were started, but trainer.strategy is single; add --trainer.strategy=ddp"
            )
        return place

    def check(self, config: RunConfig) -> None:
        """Raises ConfigError where the batch or the model cannot be shared by so many processes."""
        problems = share_problems(config, self.world)
        if problems:
            raise ConfigError(problems)


def share_problems(config: RunConfig, world: int) -> list[str]:
    """Why `world` processes cannot do this run, one line each; a resolved config. Free of torch."""
    settings, strategy = config.trainer, config.trainer.strategy
    if world == 1:
        return []
    problems = _pipeline_problems(config, world) if strategy == "pipeline" else _batch_problems(config, world)
    if strategy == "fsdp" and settings.optimizer in WHOLE_MATRICES:
        problems.append(
            f"trainer.optimizer: {settings.optimizer} needs whole matrices, of which fsdp keeps pieces; take adamw, or "
            "trainer.strategy ddp"
        )
    if strategy in ("fsdp", "pipeline") and settings.sample_interval:
        problems.append(
            f"trainer.sample_interval: with {strategy} no process has the whole model to draw samples from; set it to 0"
        )
    return problems


def _batch_problems(config: RunConfig, world: int) -> list[str]:
    settings = config.trainer
    if settings.batch_size % world:
        return [
            f"trainer.batch_size: {settings.batch_size} windows cannot be shared equally by {world} processes; "
            f"take a multiple of {world}"
        ]
    if settings.grad_accum > settings.batch_size // world:
        return [
            f"trainer.grad_accum: {settings.grad_accum} is over the {settings.batch_size // world} windows that "
            f"each of {world} processes has; a part must hold at least one window"
        ]
    return []


def _pipeline_problems(config: RunConfig, world: int) -> list[str]:
    settings, layers, problems = config.trainer, config.model.sizes()[0], []
    pieces = microbatches(config, world)
    if layers is not None and layers < world:
        problems.append(f"trainer.strategy: {layers} layers cannot be split into {world} stages; use fewer processes")
    if settings.batch_size % pieces:
        problems.append(
            f"trainer.batch_size: {settings.batch_size} windows cannot be cut into {pieces} equal micro-batches; take "
            f"a multiple of {pieces}, or set trainer.pipeline_microbatches"
        )
    elif settings.pipeline_schedule == "1f1b" and pieces < world:
        problems.append(
            f"trainer.pipeline_microbatches: 1f1b needs at least as many as there are processes ({world}), got {pieces}"
        )
    if settings.grad_accum > 1:
        problems.append(
            f"trainer.grad_accum: {settings.grad_accum}, but a pipeline cuts its batches itself; set "
            "trainer.pipeline_microbatches instead"
        )
    if config.model.tie_embeddings:
        problems.append("model.tie_embeddings: a pipeline has the embeddings and the head in different processes")
    return problems


def microbatches(config: RunConfig, world: int) -> int:
    """Into how many parts a pipeline cuts a batch."""
    return config.trainer.pipeline_microbatches or world


def make(config: RunConfig, device: torch.device, team: Team | None) -> Single:
    """The strategy of this process; one process alone does all itself, whatever `trainer.strategy` says."""
    from ablatrix.trainer.distributed.single import Single

    if team is None:
        return Single(config, device)
    module, name = STRATEGIES[config.trainer.strategy]
    strategy: Single = getattr(importlib.import_module(f"trainer.parallel.{module}"), name)(config, device, team)
    return strategy
