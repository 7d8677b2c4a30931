"""The optimisers: one file each, behind the interface of `base.Optimizer`.

None is torch's own: creating one of those imports torch._dynamo, which alone takes as long as the rest of a short
job's start, and reads numbers back from the device, so that a step could not be recorded as a CUDA graph. The formulas
are the same; tests hold each to torch's or to its paper's.
"""

from __future__ import annotations

from torch import nn

from ablatrix.trainer.config import TrainerConfig
from ablatrix.trainer.config.optimization import settled
from ablatrix.trainer.optimizers.adamw import AdamW
from ablatrix.trainer.optimizers.base import Optimizer, decaying

__all__ = ["AdamW", "Optimizer", "decaying", "make"]


def make(model: nn.Module, settings: TrainerConfig) -> Optimizer:
    """The optimiser that `trainer.optimizer` names, of all trainable parameters of the model."""
    settings = settled(settings)
    name, decay, clip = settings.optimizer, settings.weight_decay, settings.grad_norm_clip
    momentum, nesterov = settings.momentum or 0.0, bool(settings.nesterov)
    if name == "sgd":
        from ablatrix.trainer.optimizers.sgd import SGD

        return SGD(decaying(model), momentum, nesterov, decay, clip)
    if name == "muon":
        from ablatrix.trainer.optimizers.muon import Muon

        return Muon(model, settings.betas, momentum, nesterov, settings.ns_steps, decay, clip)
    if name == "adafactor":
        from ablatrix.trainer.optimizers.adafactor import Adafactor

        return Adafactor(decaying(model), settings.beta2_decay, settings.update_clip, decay, clip)
    return AdamW(decaying(model), settings.betas, decay, clip)
