"""Name what the settings of a cell change: model, learning rate, schedule, optimizer, regularization, batch, data."""

from __future__ import annotations

from collections.abc import Iterable

from ablatrix.trainer.config.optimization import OPTIMIZERS, SCHEDULES

SECTIONS = {"model": "model", "data": "data", "system": "system"}
TRAINER = {
    **{name: "optimizer" for names in OPTIMIZERS.values() for name in names},
    **{name: "schedule" for names in SCHEDULES.values() for name in names},
    **dict.fromkeys(("schedule", "use_cosine", "warmup_steps"), "schedule"),
    **dict.fromkeys(("optimizer", "grad_norm_clip"), "optimizer"),
    **dict.fromkeys(("batch_size", "grad_accum"), "batch"),
    **dict.fromkeys(("dtype", "compile", "device", "strategy"), "system"),
    "learning_rate": "learning rate",
    "weight_decay": "regularization",
    "max_iters": "length",
}
DROPOUT = "_pdrop"  # suffix of the model's dropout settings


def find_changes(keys: Iterable[str]) -> tuple[str, ...]:
    """Return what settings with these dotted keys change; `other` for a command's own and for unknown settings."""
    return tuple(sorted({_change_of(key) for key in keys}, key=lambda name: (name != "model", name)))


def _change_of(key: str) -> str:
    section, _, name = key.partition(".")
    if section == "trainer":
        return TRAINER.get(name, "other")
    if section == "model" and name.endswith(DROPOUT):
        return "regularization"
    return SECTIONS.get(section, "other") if name else "other"
