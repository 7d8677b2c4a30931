"""Strategies for sharing one run among several processes. Torch-free.

Processes read their ranks from torchrun's variables: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. The
job's task (orchestrator/job/task.py) and `python -m torch.distributed.run -m ablatrix.trainer ...` both set them.
Only rank 0 writes files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ablatrix.trainer.config import RunConfig
    from ablatrix.trainer.distributed.process_group import ProcessGroup
    from ablatrix.trainer.distributed.single import Single

STRATEGIES = {
    "ddp": ("ddp", "DataParallel"),
    "fsdp": ("fsdp", "FullySharded"),
    "pipeline": ("pipeline", "Pipeline"),
}


def make(config: RunConfig, device: torch.device, group: ProcessGroup | None) -> Single:
    """Return the strategy of this process: `trainer.strategy`, or `Single` if there is no group."""
    from ablatrix.trainer.distributed.single import Single

    if group is None:
        return Single(config, device)
    module, name = STRATEGIES[config.trainer.strategy]
    strategy: Single = getattr(importlib.import_module(f"ablatrix.trainer.distributed.{module}"), name)(
        config, device, group
    )
    return strategy
