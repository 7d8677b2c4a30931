"""Check a scale axis against the rest of its experiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ablatrix.orchestrator.study import dotted

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.experiment import Loaded
    from ablatrix.orchestrator.study.run_config import Config
    from ablatrix.orchestrator.study.scale import Size

STEPS, EPOCHS = "trainer.max_iters", "trainer.epochs"
PER_PARAMETER = "tokens_per_parameter"


def problems(loaded: Loaded) -> Iterator[str]:
    """Yield each problem, prefixed with its location."""
    experiment, scale = loaded.experiment, loaded.experiment.scale
    if scale is None:
        return
    if experiment.tune is not None:
        yield f"{loaded.at('scale')}scale: incompatible with tune; tune at one size, and scale what it confirms"
    sources = dict.fromkeys(scale.settings, "scale")
    if scale.tokens_per_parameter is not None:
        yield from _token_problems(loaded)
        sources[STEPS] = sources[EPOCHS] = f"scale.{PER_PARAMETER}"
    for level in experiment.all_levels():
        for key in level.overrides:
            if source := _set_by(key, sources):
                yield (
                    f"{loaded.at(*level.path, key)}{'.'.join((*level.path, key))}: {source} sets {key} at each size, "
                    f"so {level.label} would have one size only; leave it out of one of the two"
                )
    for key in loaded.forced:
        if source := _set_by(key, sources):
            yield f"--set {key}: {source} sets it at each size; change the sizes in the file"


def _token_problems(loaded: Loaded) -> Iterator[str]:
    experiment, where = loaded.experiment, f"{loaded.at('scale', PER_PARAMETER)}scale.{PER_PARAMETER}: "
    scaled = experiment.scale.settings if experiment.scale else {}
    if experiment.command:
        yield f"{where}the parameters of a command's model are not known; scale its number of steps instead"
    elif key := next((key for key in (STEPS, EPOCHS) if key in scaled), None):
        yield f"{where}conflicts with scale.{key}, which sets the length of training too; leave one out"
    elif EPOCHS in experiment.base:
        yield f"{where}conflicts with base.{EPOCHS}, which sets the length of training too; leave one out"


def order_problems(loaded: Loaded, bases: Sequence[tuple[Size, Config]]) -> list[str]:
    """Return problems with sizes that are equal, or smaller in compute than the previous one. bases: base per size."""
    if loaded.experiment.scale is None:
        return []
    where, problems = f"{loaded.at('scale')}scale: ", []
    marks: dict[str, str] = {}
    for size, config in bases:
        other = marks.setdefault(config.fingerprint(), size.name)
        if other != size.name:
            problems.append(
                f"{where}{size.name} and {other} are the same configuration; take what fixes the size out of base"
            )
    for (size, config), (following, larger) in pairwise(bases):
        before, after = compute(config), compute(larger)
        if before and after and after < before:
            problems.append(
                f"{where}{following.name} trains with {after:.2g} FLOPs, {size.name} before it with {before:.2g}; list "
                "the sizes from small to large"
            )
    return problems


def compute(config: Config) -> float | None:
    """Return the training FLOPs of a run, None if unknown."""
    return config.flops_per_token * config.tokens if config.flops_per_token and config.tokens else None


def _set_by(key: str, sources: dict[str, str]) -> str:
    """Return the key that sets a setting, or one below or above it, at each size; '' if none does."""
    related = [key, *dotted.parents(key), *(scaled for scaled in sources if scaled.startswith(f"{key}."))]
    return next((sources[name] for name in related if name in sources), "")
