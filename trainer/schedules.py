"""The learning rate as a pure function of the step. Torch-free.

Every schedule starts with a linear warm-up, followed by one small function of the step t (counted from 1 to max_iters),
with w = warmup_steps, peak = learning_rate and floor = min_lr_ratio * peak.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ablatrix.trainer.config.optimization import schedule_name, settled

if TYPE_CHECKING:
    from ablatrix.trainer.config import TrainerConfig


def learning_rate(step: int, config: TrainerConfig) -> float:
    """Return the learning rate for optimizer step `step`, counted from 1 to max_iters.

    Warm-up: peak * step / warmup_steps, which is 0 before the first step and the peak at step warmup_steps (Goyal et
    al. 2017, section 2.2). After that, the shape named by `schedule`.
    """
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    name = schedule_name(config)
    if name == "constant" or step == config.warmup_steps:
        return config.learning_rate
    return SHAPES[name](step, config)


def cosine(step: int, config: TrainerConfig) -> float:
    """floor + (peak - floor) * (1 + cos(pi * (t - w) / (max_iters - w))) / 2: Loshchilov & Hutter 2017, eq. 5, one
    cycle."""
    peak, floor = _ends(config)
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * _done(step, config)))


def linear(step: int, config: TrainerConfig) -> float:
    """peak - (peak - floor) * (t - w) / (max_iters - w): Devlin et al. 2019, appendix A.2."""
    peak, floor = _ends(config)
    return floor + (peak - floor) * (1.0 - _done(step, config))


def inverse_sqrt(step: int, config: TrainerConfig) -> float:
    """peak * sqrt(w / t), or peak / sqrt(t) without warm-up: Vaswani et al. 2017, eq. 3, with a free peak."""
    return config.learning_rate * math.sqrt(max(1, config.warmup_steps) / max(1, step))


def wsd(step: int, config: TrainerConfig) -> float:
    """Warm-up, stable, decay (Hu et al. 2024, section 4): the peak until d = decay_steps before the end, then

    floor + (peak - floor) * (1 - f((t - max_iters + d) / d)), where f is the square root (Hägele et al. 2024, who find
    this best) or, for decay_shape linear, the identity.
    """
    peak, floor = _ends(config)
    decay = settled(config).decay_steps or 0
    into = step - (config.max_iters - decay)
    if into <= 0 or not decay:
        return peak
    done = min(1.0, into / decay)
    return floor + (peak - floor) * (1.0 - (math.sqrt(done) if config.decay_shape == "sqrt" else done))


def infinite(step: int, config: TrainerConfig) -> float:
    """Warm-up, cooldown, constant, annealing (Ibrahim et al. 2024, "Simple and scalable strategies to continually
    pre-train large language models").

    With constant = constant_lr_ratio * peak: over cooldown_steps c, half a cosine from the peak to the constant,
    constant + (peak - constant) * (1 + cos(pi * (t - w) / c)) / 2; then the constant; over the last anneal_steps a, the
    exponential constant * (floor / constant)^((t - max_iters + a) / a).
    """
    peak, floor = _ends(config)
    constant = config.constant_lr_ratio * peak
    phases = settled(config)
    cooldown, anneal = phases.cooldown_steps or 0, phases.anneal_steps or 0
    if step < config.warmup_steps + cooldown:
        done = (step - config.warmup_steps) / cooldown
        return constant + 0.5 * (peak - constant) * (1.0 + math.cos(math.pi * done))
    into = step - (config.max_iters - anneal)
    if into <= 0 or not anneal:
        return constant
    return constant * math.pow(floor / constant, min(1.0, into / anneal))


SHAPES = {"cosine": cosine, "linear": linear, "inverse_sqrt": inverse_sqrt, "wsd": wsd, "infinite": infinite}


def _ends(config: TrainerConfig) -> tuple[float, float]:
    """Return peak and floor."""
    return config.learning_rate, config.min_lr_ratio * config.learning_rate


def _done(step: int, config: TrainerConfig) -> float:
    """Return the fraction of steps after the warm-up that are done, from 0 to 1."""
    # if all steps are warm-up, the peak is reached at the end and there is no decay
    return min(1.0, (step - config.warmup_steps) / max(1, config.max_iters - config.warmup_steps))
