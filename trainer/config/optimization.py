"""Which settings each optimiser and each schedule reads. Free of torch.

A setting that the chosen one does not read must stay at its default: what is swept is never silently ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ablatrix.trainer.config.field_errors import spell

if TYPE_CHECKING:
    from ablatrix.trainer.config import TrainerConfig

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
# By which of them a schedule depends on the end of the run
END_SETTINGS = ("min_lr_ratio", "decay_steps", "decay_shape", "anneal_steps")
PHASES = ("decay_steps", "cooldown_steps", "anneal_steps")
# What is chosen anew takes along what was filled in for the other: two ways to choose, then the settings
TOGETHER = (("schedule", "use_cosine", *PHASES), ("optimizer", "optimizer", "momentum", "nesterov"))
MOMENTUM: dict[str, tuple[float, bool]] = {"sgd": (0.9, False), "muon": (0.95, True)}  # momentum, nesterov


def schedule_name(settings: TrainerConfig) -> str:
    """The schedule that `schedule` or its short form `use_cosine` chooses."""
    return settings.schedule or ("cosine" if settings.use_cosine else "constant")


def settled(settings: TrainerConfig) -> TrainerConfig:
    """The settings with what was left to the optimiser and the schedule written out. Twice is as good as once."""
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
    """Return the last step whose learning rate would be the same with a larger `max_iters`."""
    name, complete = schedule_name(settings), settled(settings)
    last_phase = {"wsd": complete.decay_steps, "infinite": complete.anneal_steps}
    if name in last_phase:
        return settings.max_iters - (last_phase[name] or 0)
    return settings.warmup_steps if name in ("cosine", "linear") else settings.max_iters


def branch_step(settings: TrainerConfig) -> int | None:
    """Return the step from whose checkpoint a longer run can go on: the last one before the final phase, if any."""
    steady = steady_until(settings)
    return steady if schedule_name(settings) in ("wsd", "infinite") and 0 < steady < settings.max_iters else None


def problems(settings: TrainerConfig) -> Iterator[str]:
    """What contradicts itself among optimiser and schedule, a line each."""
    name = schedule_name(settings)
    if settings.use_cosine is not None and settings.use_cosine != (name == "cosine"):
        yield (
            f"trainer.use_cosine: {spell(settings.use_cosine)} contradicts trainer.schedule {name}; "
            "it is the short form of schedule: cosine, so leave one of the two out"
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
    """Do the phases that were set fit into the run? What is filled in does."""
    longest, name = settings.max_iters, schedule_name(settings)
    if settings.warmup_steps > longest:
        yield (
            f"trainer.warmup_steps: {settings.warmup_steps} is over trainer.max_iters {longest}; "
            "the learning rate would never be reached"
        )
        return
    phases = {key: getattr(settings, key) for key in PHASES if key in SCHEDULES[name] and getattr(settings, key)}
    total = settings.warmup_steps + sum(phases.values())
    if total > longest:
        words = " + ".join(f"{key} {steps}" for key, steps in phases.items())
        yield (
            f"trainer.{next(iter(phases))}: warmup_steps {settings.warmup_steps} + {words} make {total} steps, over "
            f"trainer.max_iters {longest}; shorten them or train longer"
        )


def _levels(settings: TrainerConfig) -> Iterator[str]:
    floor, constant = settings.min_lr_ratio, settings.constant_lr_ratio
    if floor == 0:
        yield "trainer.min_lr_ratio: 0 is never reached by the exponential annealing of schedule infinite; take 0.01"
    elif floor > constant:
        yield (
            f"trainer.constant_lr_ratio: {constant} is under trainer.min_lr_ratio {floor}, so that the annealing "
            "would rise; raise the one or lower the other"
        )


def shortened(settings: TrainerConfig, steps: int) -> dict[str, int]:
    """The settings that change where a run is cut to `steps` steps: its phases shrink with it, and still fit."""
    update = {"max_iters": steps, "warmup_steps": min(settings.warmup_steps, steps)}
    left = steps - update["warmup_steps"]
    for key in PHASES:
        whole = getattr(settings, key)
        if whole:
            update[key] = min(whole * steps // settings.max_iters, left)
            left -= update[key]
    return update
