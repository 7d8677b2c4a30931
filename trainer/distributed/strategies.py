"""One run in several processes: which of them this one is, and how they share the work. Free of torch.

The processes are told their places as torchrun tells them: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. The
job's task (orchestrator/job/task.py) and `python -m torch.distributed.run -m ablatrix.trainer ...` both do so. Only
rank 0 writes files. What the processes of a run owe each other is in process_group.py, how they share the work in
single.py and in the file of each strategy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from ablatrix.trainer.config import RunConfig

if TYPE_CHECKING:
    import torch

    from ablatrix.trainer.distributed.process_group import Team
    from ablatrix.trainer.distributed.single import Single

STRATEGIES = {
    "ddp": ("ddp", "DataParallel"),
    "fsdp": ("fsdp", "FullySharded"),
    "pipeline": ("pipeline", "Pipeline"),
}


def make(config: RunConfig, device: torch.device, team: Team | None) -> Single:
    """The strategy of this process; one process alone does all itself, whatever `trainer.strategy` says."""
    from ablatrix.trainer.distributed.single import Single

    if team is None:
        return Single(config, device)
    module, name = STRATEGIES[config.trainer.strategy]
    strategy: Single = getattr(importlib.import_module(f"ablatrix.trainer.distributed.{module}"), name)(
        config, device, team
    )
    return strategy
