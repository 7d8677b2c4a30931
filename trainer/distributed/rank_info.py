"""Which process of a run this one is, and what a lost peer looks like."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.config.parallelism import share_problems
from ablatrix.trainer.rundir.errors import ConfigError, RunError, UserError
from ablatrix.trainer.rundir.run_files import EXIT_LOST_PEER

# What torch says when a process at the other end of a connection is gone or silent
WORDS = ("gloo/transport", "gloo::", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")


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
