"""Which settings each optimizer and schedule reads, their defaults and contradictions. Torch-free.

A setting that the chosen optimizer or schedule does not read must keep its default, so that no sweep of it is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ablatrix.trainer.config.field_errors import spell

if TYPE_CHECKING:
    from ablatrix.trainer.config.sections import TrainerConfig

OPTIMIZERS: dict[str, tuple[str, ...]] = {
    "adamw": ("betas",),
    "sgd": ("momentum", "nesterov"),
    "muon": ("betas", "momentum", "nesterov", "ns_steps"),
    "adafactor": ("beta2_decay", "update_clip"),
}
SCHEDULES: dict[str, tuple[str, ...]] = {
    "constant": (),
    "cosine": ("min_lr_ratio",),
    "linear": ("min_lr_ratio",),
    "inverse_sqrt": (),
    "wsd": ("min_lr_ratio", "decay_steps", "decay_shape"),
    "infinite": ("min_lr_ratio", "cooldown_steps", "constant_lr_ratio", "anneal_steps"),
}
# Settings that make a schedule depend on the end of the run
END_SETTINGS = ("min_lr_ratio", "decay_steps", "decay_shape", "anneal_steps")
PHASES = ("decay_steps", "cooldown_steps", "anneal_steps")
# A new choice drops the settings filled in for the old one: two names of the choice, then the settings filled in
TOGETHER = (
    ("schedule", "use_cosine", *PHASES),
    ("optimizer", "optimizer", "momentum", "nesterov"),
    ("epochs", "epochs", "max_iters"),
)
MOMENTUM: dict[str, tuple[float, bool]] = {"sgd": (0.9, False), "muon": (0.95, True)}  # momentum, nesterov


def schedule_name(settings: TrainerConfig) -> str:
    """Return the name of the schedule, set by `schedule` or its short form `use_cosine`."""
    return settings.schedule or ("cosine" if settings.use_cosine else "constant")


def settled(settings: TrainerConfig) -> TrainerConfig:
    """Return the settings with the defaults of the optimizer and the schedule filled in. Idempotent."""
    name = schedule_name(settings)
    update: dict[str, Any] = {"schedule": name, "use_cosine": name == "cosine"}
    if settings.optimizer in MOMENTUM:
        update |= dict(zip(("momentum", "nesterov"), MOMENTUM[settings.optimizer], strict=True))
    left = max(0, settings.max_iters - settings.warmup_steps)
    if name == "wsd":
        update["decay_steps"] = -(-left // 10)
    elif name == "infinite":
        cooldown, anneal = settings.cooldown_steps, settings.anneal_steps
        update["cooldown_steps"] = max(0, min(left * 3 // 5, left - (anneal or 0)))
        update["anneal_steps"] = max(0, min(-(-left * 3 // 20), left - (cooldown or 0)))
    chosen = ("schedule", "use_cosine")
    return settings.model_copy(
        update={key: value for key, value in update.items() if key in chosen or getattr(settings, key) is None}
    )


def steady_until(settings: TrainerConfig) -> int:
    """Return the last step up to which learning rates would be the same with a larger `max_iters`."""
    name, complete = schedule_name(settings), settled(settings)
    last_phase = {"wsd": complete.decay_steps, "infinite": complete.anneal_steps}
    if name in last_phase:
        return settings.max_iters - (last_phase[name] or 0)
    return settings.warmup_steps if name in ("cosine", "linear") else settings.max_iters


def branch_step(settings: TrainerConfig) -> int | None:
    """Return the step whose checkpoint a longer run can continue from: the last one before the final phase, if any."""
    steady = steady_until(settings)
    return steady if schedule_name(settings) in ("wsd", "infinite") and 0 < steady < settings.max_iters else None


def find_problems(settings: TrainerConfig) -> Iterator[str]:
    """Yield one line per contradiction in the settings of the optimizer and the schedule."""
    name = schedule_name(settings)
    if settings.use_cosine is not None and settings.use_cosine != (name == "cosine"):
        yield (
            f"trainer.use_cosine: {spell(settings.use_cosine)} contradicts trainer.schedule {name}; "
            "it is the short form of schedule: cosine; remove one of the two"
        )
    yield from _unread(settings, "optimizer", settings.optimizer, OPTIMIZERS)
    yield from _unread(settings, "schedule", name, SCHEDULES)
    complete = settled(settings)
    if complete.nesterov and not complete.momentum:
        yield "trainer.nesterov: true needs trainer.momentum above 0; raise it, or leave nesterov out"
    yield from _phases(settings)
    if name == "infinite":
        yield from _levels(settings)


def _unread(settings: TrainerConfig, kind: str, name: str, readers: dict[str, tuple[str, ...]]) -> Iterator[str]:
    for key in dict.fromkeys(key for keys in readers.values() for key in keys):
        value = getattr(settings, key)
        if key not in readers[name] and value != type(settings).model_fields[key].default:
            those = ", ".join(reader for reader, keys in readers.items() if key in keys)
            ignored = f"trainer.{key}: {spell(value)} would be ignored by {kind} {name}"
            yield f"{ignored}; leave it out, or choose {kind} {those}"


def _phases(settings: TrainerConfig) -> Iterator[str]:
    """Yield a line if the phases set by the user do not fit into the run; phases filled in always do."""
    longest, name = settings.max_iters, schedule_name(settings)
    if settings.warmup_steps > longest:
        yield (
            f"trainer.warmup_steps: {settings.warmup_steps} exceeds trainer.max_iters {longest}; "
            "the peak learning rate would never be reached"
        )
        return
    phases = {key: getattr(settings, key) for key in PHASES if key in SCHEDULES[name] and getattr(settings, key)}
    total = settings.warmup_steps + sum(phases.values())
    if total > longest:
        words = " + ".join(f"{key} {steps}" for key, steps in phases.items())
        yield (
            f"trainer.{next(iter(phases))}: warmup_steps {settings.warmup_steps} + {words} make {total} steps, more "
            f"than trainer.max_iters {longest}; shorten them or train longer"
        )


def _levels(settings: TrainerConfig) -> Iterator[str]:
    floor, constant = settings.min_lr_ratio, settings.constant_lr_ratio
    if floor == 0:
        yield "trainer.min_lr_ratio: 0 is never reached by the exponential annealing of schedule infinite; use 0.01"
    elif floor > constant:
        yield (
            f"trainer.constant_lr_ratio: {constant} is less than trainer.min_lr_ratio {floor}: the annealing "
            "would raise the rate; raise constant_lr_ratio or lower min_lr_ratio"
        )


def shortened(settings: TrainerConfig, steps: int) -> dict[str, int]:
    """Return the settings to change to shorten a run to `steps` steps; its phases shrink in proportion."""
    update = {"max_iters": steps, "warmup_steps": min(settings.warmup_steps, steps)}
    left = steps - update["warmup_steps"]
    for key in PHASES:
        whole = getattr(settings, key)
        if whole:
            update[key] = min(whole * steps // settings.max_iters, left)
            left -= update[key]
    return update
