"""Rank and number of processes from the environment, and errors about lost peers. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablatrix.trainer.config.parallelism import share_problems
from ablatrix.trainer.rundir.errors import ConfigError, RunError, UserError
from ablatrix.trainer.rundir.run_files import EXIT_LOST_PEER

if TYPE_CHECKING:
    from ablatrix.trainer.config import RunConfig

# Phrases in torch's errors when the process at the other end of a connection is gone or unresponsive
MESSAGES = ("gloo/transport", "gloo::", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
NAMES = ("DistBackendError", "DistNetworkError", "DistStoreError")


class PeerLostError(RunError):
    """Another process of the run has ended or does not respond."""

    exit_code = EXIT_LOST_PEER


def is_lost_peer(error: BaseException) -> bool:
    """True if the error means that another process of the run is gone."""
    if isinstance(error, PeerLostError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ in NAMES or any(words in str(error) for words in MESSAGES)


def describe_lost_peer(error: BaseException) -> PeerLostError:
    """Return the error to show in place of torch's."""
    if isinstance(error, PeerLostError):
        return error
    words = str(error).strip().splitlines()
    return PeerLostError(
        f"another process of this run has ended or does not answer ({words[0][:120] if words else 'no reason'}); see "
        "its output. Rerun the same command: the run continues from its last checkpoint"
    )


@dataclass(frozen=True)
class RankInfo:
    """The rank of this process in the run."""

    rank: int = 0  # rank among all processes
    world: int = 1  # number of processes of the run
    local_rank: int = 0  # rank among the processes of this machine

    @classmethod
    def from_environment(cls, config: RunConfig, environ: Mapping[str, str] = os.environ) -> RankInfo:
        """Read torchrun's variables. Raises UserError if they are incomplete or contradict `trainer.strategy`."""
        if "WORLD_SIZE" not in environ:
            return cls()
        try:
            rank, world = int(environ["RANK"]), int(environ["WORLD_SIZE"])
            ranks = cls(rank, world, int(environ.get("LOCAL_RANK", "0")))
        except (KeyError, ValueError):
            raise UserError("WORLD_SIZE is set, but RANK is not a number: start the processes with torchrun") from None
        if ranks.world > 1 and config.trainer.strategy == "single":
            raise UserError(
                f"{ranks.world} processes were started, but trainer.strategy is single; add --trainer.strategy=ddp"
            )
        return ranks

    def check(self, config: RunConfig) -> None:
        """Raise ConfigError if this number of processes cannot share the batch or the model."""
        problems = share_problems(config, self.world)
        if problems:
            raise ConfigError(problems)
