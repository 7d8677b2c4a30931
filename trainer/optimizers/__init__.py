"""The optimizers, one file each, with the interface of `base.Optimizer`.

torch.optim is not used: creating one of its optimizers imports torch._dynamo, which takes as long as the rest of a
short job's startup; its Muon and Adafactor read numbers back from the device, so that steps could not be recorded as
CUDA graphs; and its Adafactor limits the learning rate to 1 / sqrt(step). Tests compare each with torch or its paper.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ablatrix.trainer.config.optimization import settled
from ablatrix.trainer.optimizers.adamw import AdamW
from ablatrix.trainer.optimizers.base import Optimizer, decaying

if TYPE_CHECKING:
    from torch import nn

    from ablatrix.trainer.config import TrainerConfig

__all__ = ["AdamW", "Optimizer", "decaying", "make"]


def make(model: nn.Module, settings: TrainerConfig) -> Optimizer:
    """Return the optimizer named by `trainer.optimizer`, for all trainable parameters of the model."""
    settings = settled(settings)
    name, decay, clip = settings.optimizer, settings.weight_decay, settings.grad_norm_clip
    momentum, nesterov = settings.momentum or 0.0, bool(settings.nesterov)
    if name == "sgd":
        from ablatrix.trainer.optimizers.sgd import SGD

        return SGD(decaying(model), momentum, nesterov, decay, clip)
    if name == "muon":
        from ablatrix.trainer.optimizers.muon import Muon

        return Muon(
            model, settings.betas, momentum=momentum, nesterov=nesterov, ns_steps=settings.ns_steps,
            weight_decay=decay, grad_norm_clip=clip,
        )  # fmt: skip
    if name == "adafactor":
        from ablatrix.trainer.optimizers.adafactor import Adafactor

        return Adafactor(decaying(model), settings.beta2_decay, settings.update_clip, decay, clip)
    return AdamW(decaying(model), settings.betas, decay, clip)
