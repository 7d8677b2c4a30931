"""Check the design of an experiment: its words, the features that cells name, level names, and seeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from ablatrix.orchestrator.study.experiment import DESIGNS, NAME, Loaded
from ablatrix.orchestrator.study.sbatch_options import minutes
from ablatrix.orchestrator.study.yaml_tree import KeyPath
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.config.suggestions import nearest

MOST_NAMES = 20  # of features in a message


def design_problems(loaded: Loaded) -> Iterator[str]:
    """Yield each problem with its place."""
    yield from _words(loaded)
    yield from _members(loaded)
    yield from _names(loaded)
    experiment, settings = loaded.experiment, loaded.experiment.slurm
    if settings.signal_seconds >= 60 * minutes(settings.time):
        yield (
            f"{loaded.at('slurm', 'time')}slurm.signal_seconds: {settings.signal_seconds} s before the end of a job of "
            f"{settings.time} is before its start; raise slurm.time or lower slurm.signal_seconds"
        )
    seeds = experiment.seed_list
    if not seeds or len(set(seeds)) != len(seeds):
        yield f"{loaded.at('seeds')}seeds: give at least one seed, each once, got {experiment.seeds!r}"


def _words(loaded: Loaded) -> Iterator[str]:
    for item in loaded.experiment.design:
        word = next(iter(item)) if isinstance(item, dict) and len(item) == 1 else item
        if word not in DESIGNS or (isinstance(item, dict) and (word != "factorial" or not _is_order(item[word]))):
            hint = nearest(str(word), DESIGNS)
            yield f"{loaded.at('design')}design: {spell(item)!r} is not one of {', '.join(DESIGNS)}{hint}"


def _is_order(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _members(loaded: Loaded) -> Iterator[str]:
    """Yield the features in `cells` and `exclude` that do not exist."""
    experiment, known = loaded.experiment, _labels(loaded)
    listed = ", ".join(known[:MOST_NAMES]) + (f" and {len(known) - MOST_NAMES:,} more" if known[MOST_NAMES:] else "")
    groups: list[tuple[KeyPath, list[str]]] = [(("cells", name), m) for name, m in experiment.cells.items()]
    groups += [(("exclude",), members) for members in experiment.exclude]
    for path, members in groups:
        for member in dict.fromkeys(name for name in members if name not in known):
            hint = f"{nearest(member, known)}; features: {listed or 'none'}"
            yield f"{loaded.at(*path)}{'.'.join(path)}: no feature {member!r}{hint}"


def _names(loaded: Loaded) -> Iterator[str]:
    experiment, known = loaded.experiment, _labels(loaded)
    for level in (level for group in experiment.levels() for level in group):
        if not NAME.fullmatch(level.path[-1]):
            yield f"{loaded.at(*level.path)}{'.'.join(level.path)}: {level.path[-1]!r} is not a safe name"
    for name in ("baseline", "all_on"):
        if name in (*known, *experiment.cells):
            yield f"{loaded.at('features', name)}{name}: is what designs call a cell; choose another name"
    for name, other in _differing_in_case([*experiment.features, *experiment.cells, *known]):
        yield f"{loaded.at('features')}features: {name} and {other} differ in case only; rename one"
    if len(set(known)) < len(known):
        yield f"{loaded.at('features')}features: a level and a feature have the same name"


def _labels(loaded: Loaded) -> list[str]:
    return [level.label for group in loaded.experiment.levels() for level in group]


def _differing_in_case(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield names that are the same on file systems that ignore case."""
    first: dict[str, str] = {}
    for name in dict.fromkeys(names):
        other = first.setdefault(name.casefold(), name)
        if other != name:
            yield other, name
