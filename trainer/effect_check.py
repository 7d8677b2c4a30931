"""Check that settings take effect: `python -m ablatrix.trainer.effect_check` trains each configuration for a few steps.

Reads a JSON list of resolved configurations from stdin and prints a JSON list of signatures. A signature covers a few
real optimizer steps of a shrunken model with the same switches, the whole sequence of learning rates, and the settings
that determine the batches. Two configurations with the same signature train identically.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ablatrix.trainer.schedules import learning_rate

if TYPE_CHECKING:
    from ablatrix.trainer.config import RunConfig, TrainerConfig

STEPS = 3
WINDOWS = 4
SCHEDULE_POINTS = 2000  # rates to compare; for longer schedules, every n-th
SIZES = ("n_layer", "n_head", "n_kv_head", "n_embd", "vocab_size", "block_size")
# Settings that change the first steps of every model made of built-in parts; those of the data always do
EFFECTIVE = {
    "model": (
        *(*SIZES, "init_from", "embd_pdrop", "resid_pdrop", "attn_pdrop", "positions", "alibi_trainable"),
        *("feedforward", "norm", "norm_placement", "qk_norm", "bias", "tie_embeddings"),
    ),
    "trainer": ("optimizer", "learning_rate", "betas", "momentum", "weight_decay", "batch_size"),
    "system": ("seed",),
}


def differ_by_settings(one: RunConfig, other: RunConfig) -> bool:
    """True if two configurations train differently by their settings alone, whatever a few steps would show.

    False for code of the user's own, which may ignore a setting, and for settings that matter only in some runs.
    """
    if any(config.model.custom_components or config.callbacks.custom for config in (one, other)):
        return False
    settings = [(section, name) for section, names in EFFECTIVE.items() for name in names]
    mine, theirs = ([getattr(getattr(config, section), name) for section, name in settings] for config in (one, other))
    return one.data != other.data or mine != theirs or _rates(one.trainer) != _rates(other.trainer)


def signature(tree: dict[str, Any]) -> dict[str, str]:
    """Return {"sizes", "training", "schedule", "end", "data"}: a short hash or description of each."""
    from ablatrix.trainer.config import validate

    config = validate(tree)
    settings = config.trainer
    return {
        "sizes": "/".join(str(getattr(config.model, name)) for name in (*SIZES, "init_from")),
        "training": _train(config),
        "schedule": _hash(json.dumps(_rates(settings))),
        "end": _end(config),
        "data": _hash(config.data.model_dump_json() + f"{settings.batch_size}/{config.system.seed}"),
    }


def _rates(settings: TrainerConfig) -> list[float]:
    """Return the number of steps and the learning rates."""
    every = max(1, settings.max_iters // SCHEDULE_POINTS)
    steps = range(1, settings.max_iters + 1, every)
    return [settings.max_iters, *(learning_rate(step, settings) for step in steps)]


def _end(config: Any) -> str:
    """Return the settings that may end training early, or change it in a way that cannot be computed here."""
    settings, own = config.trainer, ",".join(config.callbacks.custom)
    if not settings.early_stop_patience:
        return own
    stop = (settings.early_stop_patience, settings.early_stop_min_delta, settings.eval_interval, settings.eval_tokens)
    return f"{own} {stop}"


def _train(config: Any) -> str:
    """Return a hash of the shrunken model's parameters after a few steps on synthetic tokens, including dropout."""
    import numpy as np

    from ablatrix.trainer.loop import Trainer

    model, settings = config.model, config.trainer
    heads = min(model.n_head, 2)
    small = {
        "init_from": None,
        "n_layer": min(model.n_layer, 2),
        "n_head": heads,
        "n_kv_head": heads if model.n_kv_head == model.n_head else 1,
        "n_embd": 8 * heads,
        "vocab_size": 67,
        "block_size": min(model.block_size, 16),
    }
    update = {"max_iters": STEPS, "log_interval": STEPS, "eval_interval": 0, "ckpt_interval": 0, "batch_size": WINDOWS}
    update["grad_accum"] = min(settings.grad_accum, WINDOWS)  # a part has at least one window
    tiny = config.model_copy(
        update={"model": model.model_copy(update=small), "trainer": settings.model_copy(update=update)}
    )
    tokens = np.random.default_rng(0).integers(0, 67, size=(STEPS, WINDOWS, small["block_size"] + 1))

    def batches(start: int, stop: int) -> Iterator[tuple[Any, Any]]:
        return ((tokens[i, :, :-1], tokens[i, :, 1:]) for i in range(start, stop))

    empty = np.empty((0, small["block_size"]), dtype=np.int64)
    trainer = Trainer(tiny, batches, (empty, empty), "cpu")
    trainer.run()
    digest = hashlib.sha256()
    for name, parameter in trainer.model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()[:16]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"  # a login node is shared
    from ablatrix.trainer.rundir.errors import AblatrixError

    try:
        with contextlib.redirect_stdout(sys.stderr):  # a custom component may print
            signatures = [signature(tree) for tree in json.load(sys.stdin)]
        print(json.dumps(signatures))
    except AblatrixError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
