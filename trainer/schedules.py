"""The learning rate as a pure function of the step. Free of torch."""

from __future__ import annotations

import math

from trainer.config import TrainerConfig


def learning_rate(step: int, config: TrainerConfig) -> float:
    """Learning rate of optimiser step number `step`, counted from 1 to max_iters.

    Warm-up: peak * step / warmup_steps, which is 0 before the first step and the peak at step warmup_steps. After it
    the peak, or with `use_cosine` half a cosine from the peak at step warmup_steps to min_lr_ratio * peak at step
    max_iters (Loshchilov & Hutter 2017, eq. 5, one cycle). Each works without the other.
    """
    peak = config.learning_rate
    if step < config.warmup_steps:
        return peak * step / config.warmup_steps
    if not config.use_cosine:
        return peak
    # all steps may be warm-up: then the peak is reached at the very end and nothing is left to decay
    done = (step - config.warmup_steps) / max(1, config.max_iters - config.warmup_steps)
    floor = config.min_lr_ratio * peak
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * min(1.0, done)))
