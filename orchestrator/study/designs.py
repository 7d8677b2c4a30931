"""The designs of an experiment: which cells it has, and checks of the keys that define them."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.study import screening
from ablatrix.orchestrator.study.experiment import NAME, Experiment, Loaded
from ablatrix.orchestrator.study.looks import AdaptiveSeeds
from ablatrix.orchestrator.study.sbatch_options import minutes
from ablatrix.orchestrator.study.scale import SEPARATOR
from ablatrix.trainer.config import keys
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.config.suggestions import hint, nearest
from ablatrix.trainer.rundir.errors import ConfigError

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.yaml_tree import KeyPath

LONGEST_NAME = 80
MOST_CELLS = 10_000
MOST_COMBINATIONS = 100_000  # in a design, including those removed by `exclude`
MOST_NAMES = 20  # feature names listed in a message
AA = "aa"  # the cell that repeats the baseline with different seeds
AA_SHIFT = 10_000  # shift of its seeds: beyond the study's seeds, which may grow, and beyond tuning seeds

Labels = tuple[str, ...]  # features that are on: ("swiglu",) or ("lr.high", "rope"), in the file's order
Groups = Sequence[Sequence[str]]  # the labels of each feature's levels


@dataclass(frozen=True)
class Cell:
    """A set of features that are on. seed_shift: added to the seeds with which it is trained."""

    name: str
    features: Labels
    seed_shift: int = 0


# ---- designs: each yields (name, features) for its cells


def _baseline(groups: Groups, number: int | None) -> Iterator[tuple[str, Labels]]:
    yield "baseline", ()


def _one_at_a_time(groups: Groups, number: int | None) -> Iterator[tuple[str, Labels]]:
    for label in itertools.chain.from_iterable(groups):
        yield label, (label,)


def _all_on(groups: Groups, number: int | None) -> Iterator[tuple[str, Labels]]:
    yield "all_on", tuple(group[0] for group in groups)


def _leave_one_out(groups: Groups, number: int | None) -> Iterator[tuple[str, Labels]]:
    ((name, all_on),) = _all_on(groups, number)
    yield name, all_on
    for left_out in all_on:
        yield f"without-{left_out}", tuple(label for label in all_on if label != left_out)


def _factorial(groups: Groups, number: int | None) -> Iterator[tuple[str, Labels]]:
    """Yield each combination of at most `number` features at each of their levels; small sets first."""
    for size in range(min(number or len(groups), len(groups)) + 1):
        for chosen in itertools.combinations(groups, size):
            for features in itertools.product(*chosen):
                yield _combined_name(features), features


def _screened(groups: Groups, screen: screening.Screen) -> Iterator[tuple[str, Labels]]:
    for cell in screen.cells:
        features = tuple(group[0] for i, group in enumerate(groups) if cell >> i & 1)
        yield _combined_name(features), features


def _fractional(groups: Groups, number: int | None) -> Iterator[tuple[str, Labels]]:
    """Yield a fraction of all combinations, of resolution `number` or higher."""
    yield from _screened(groups, _screen("fractional", number, len(groups)))


def _plackett_burman(groups: Groups, number: int | None) -> Iterator[tuple[str, Labels]]:
    """Yield a Plackett-Burman design of `number` cells."""
    yield from _screened(groups, _screen("plackett_burman", number, len(groups)))


def is_aa(cell: str, features: Sequence[str]) -> bool:
    """True for the cell of the A/A check, including at a size or at a value of a tuned setting."""
    return cell.partition(SEPARATOR)[0] == AA and not features


def _aa(groups: Groups, number: int | None) -> Iterator[tuple[str, Labels]]:
    """Yield the baseline with different seeds."""
    yield AA, ()


def _combined_name(features: Labels) -> str:
    name = "+".join(features) or "baseline"
    if len(name) > LONGEST_NAME:
        name = f"{len(features)}-features-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


DESIGNS: dict[str, Callable[[Groups, int | None], Iterator[tuple[str, Labels]]]] = {
    "baseline": _baseline,
    "one_at_a_time": _one_at_a_time,
    "all_on": _all_on,
    "leave_one_out": _leave_one_out,
    "factorial": _factorial,
    "fractional": _fractional,
    "plackett_burman": _plackett_burman,
    "aa": _aa,
}
SCREENS = ("fractional", "plackett_burman")
NUMBERS = {"fractional": tuple(screening.RESOLUTIONS), "plackett_burman": tuple(screening.PLACKETT_BURMAN)}


def expand_cells(loaded: Loaded) -> list[Cell]:
    """Return the cells, in order; a set of features in two designs gets its first name. Raise ConfigError."""
    experiment, where = loaded.experiment, f"{loaded.at('design')}design: "
    groups = [[level.label for level in group] for group in experiment.levels()]
    excluded = [frozenset(combination) for combination in experiment.exclude]
    chosen: dict[frozenset[str], Cell] = {}
    names: set[str] = set()
    candidates = itertools.chain(_designed(experiment.design, groups), experiment.cells.items())
    for number, (name, features) in enumerate(candidates):
        key = frozenset(features)
        if number == MOST_COMBINATIONS or len(chosen) > MOST_CELLS:
            raise ConfigError([f"{where}more than {MOST_CELLS:,} cells; use {{factorial: 2}} or fewer features"])
        if is_aa(name, features):
            continue
        if key in chosen or any(combination <= key for combination in excluded):
            continue
        if name in names:
            raise ConfigError([f"{where}two different cells would be called {name}; rename the one under cells"])
        names.add(name)
        chosen[key] = Cell(name, tuple(label for label in itertools.chain.from_iterable(groups) if label in key))
    return [*chosen.values(), *_aa_cells(loaded, frozenset() in chosen)]


def _aa_cells(loaded: Loaded, has_baseline: bool) -> list[Cell]:
    """Return the cell that repeats the baseline with different seeds, [] without `aa`. Raise ConfigError."""
    experiment, where = loaded.experiment, f"{loaded.at('design')}design: aa "
    if AA not in experiment.design:
        return []
    if not has_baseline:
        raise ConfigError([f"{where}compares the baseline with itself; add baseline to the design"])
    if experiment.tune:
        raise ConfigError([f"{where}cannot be used with tune; remove one of the two"])
    if any(seed + AA_SHIFT in experiment.seed_list for seed in experiment.seed_list):
        raise ConfigError([f"{where}trains with the seeds + {AA_SHIFT:,}, which `seeds` has too; give smaller seeds"])
    return [Cell(AA, (), AA_SHIFT)]


def _designed(design: Iterable[Any], groups: Groups) -> Iterator[tuple[str, Labels]]:
    for word, number in map(_parsed, design):
        yield from DESIGNS[word](groups, number)


def _parsed(item: Any) -> tuple[str, int | None]:
    """Return the word of an entry in `design` and its number."""
    return next(iter(item.items())) if isinstance(item, dict) else (item, None)


def screen_of(design: Iterable[Any], features: int) -> screening.Screen | None:
    """Return the screening design among the entries of `design`, None if there is none."""
    found = [(word, number) for word, number in map(_parsed, design) if word in SCREENS]
    return _screen(*found[0], features) if found else None


def _screen(word: str, number: int | None, features: int) -> screening.Screen:
    return (
        screening.fractional(features, number or 5)
        if word == "fractional"
        else screening.plackett_burman(features, number)
    )


def count_main_effects(experiment: Experiment) -> int:
    """Return how many main effects the report tests instead of single cells, 0 if it compares cells."""
    features = len(experiment.features)
    if features < 3 or len(experiment.all_levels()) > features:
        return 0
    screened = screen_of(experiment.design, features) is not None
    full = any(
        word == "factorial" and (number or features) >= features for word, number in map(_parsed, experiment.design)
    )
    return features if screened or (full and not experiment.exclude) else 0


# ---- checks


def design_problems(loaded: Loaded) -> Iterator[str]:
    """Yield each problem, prefixed with its location."""
    yield from _words(loaded)
    yield from _members(loaded)
    yield from _names(loaded)
    yield from _tuned(loaded)
    experiment, settings = loaded.experiment, loaded.experiment.slurm
    if settings.signal_seconds >= 60 * minutes(settings.time):
        yield (
            f"{loaded.at('slurm', 'time')}slurm.signal_seconds: {settings.signal_seconds} s before the end of a job of "
            f"{settings.time} is before its start; raise slurm.time or lower slurm.signal_seconds"
        )
    if problem := _looks_problem(experiment):
        yield f"{loaded.at('seeds')}seeds: {problem}"
        return
    seeds = experiment.seed_list
    if not seeds or len(set(seeds)) != len(seeds):
        yield f"{loaded.at('seeds')}seeds: give at least one seed, each once, got {experiment.seeds!r}"


def _looks_problem(experiment: Experiment) -> str:
    """Return what is wrong with the planned looks, '' if nothing is or there are none."""
    if not isinstance(experiment.seeds, AdaptiveSeeds):
        return ""
    if whole := [word for word in map(_word, experiment.design) if word in ("factorial", *SCREENS)]:
        return f"a {whole[0]} design is judged as a whole, so no cell can stop early; give a number of seeds"
    for name in ("tune", "scale"):
        if getattr(experiment, name):
            return f"planned looks and `{name}` cannot be combined; give a number of seeds"
    return experiment.seeds.problem()


def _words(loaded: Loaded) -> Iterator[str]:
    known, where = list(DESIGNS), f"{loaded.at('design')}design: "
    found: list[str] = []
    for item in loaded.experiment.design:
        word = _word(item)
        if not isinstance(word, str) or word not in known:
            yield f"{where}{spell(item)!r} is not one of {', '.join(known)}{nearest(str(word), known)}"
        elif isinstance(item, dict) and (fault := _number_fault(word, item[word])):
            yield f"{where}{_spelled(item)}: {fault}"
        elif word in SCREENS:
            found.append(word)
            yield from (f"{where}{_spelled(item)}: {fault}" for fault in _screen_faults(loaded, item))
    if len(found) > 1:
        yield f"{where}has {' and '.join(found)}; choose one of them"


def _word(item: Any) -> Any:
    """Return the word of an unchecked entry in `design`; an entry in any other form is returned unchanged."""
    return next(iter(item)) if isinstance(item, dict) and len(item) == 1 else item


def _spelled(item: Any) -> str:
    """Return an entry in `design` as written."""
    word, number = _parsed(item)
    return f"{{{word}: {spell(number)}}}" if isinstance(item, dict) else word


def _number_fault(word: str, number: Any) -> str:
    """Return what is wrong with the number of a design, '' if nothing is."""
    whole = isinstance(number, int) and not isinstance(number, bool)
    if word == "factorial":
        return "" if whole and number >= 1 else "the most features that are on must be 1 or more"
    if word not in NUMBERS:
        return f"takes no number; write {word}"
    choices = ", ".join(map(str, NUMBERS[word]))
    what = "resolution" if word == "fractional" else "number of cells"
    return "" if whole and number in NUMBERS[word] else f"the {what} must be one of {choices}"


def _screen_faults(loaded: Loaded, item: Any) -> Iterator[str]:
    """Yield the reasons why a screening design does not fit the features."""
    groups = loaded.experiment.levels()
    for group in groups:
        if len(group) > 1:
            yield f"takes features with one level, {group[0].path[1]} has {len(group)}; use factorial, or one of them"
    try:
        screen = _screen(*_parsed(item), len(groups))
    except ValueError as error:
        yield f"{error}; {_instead(len(groups), *_parsed(item))}"
        return
    cells = [set(features) for _, features in _screened([[level.label for level in g] for g in groups], screen)]
    for combination in loaded.experiment.exclude:
        if any(set(combination) <= cell for cell in cells):
            removed = ", ".join(combination)
            yield f"exclude: [{removed}] would remove cells that it needs; use factorial, or other features"


def _instead(features: int, word: str, number: int | None) -> str:
    """Return advice on which design can take this many features."""
    if word == "plackett_burman" and features < 7:
        return "use {fractional: 3}, {fractional: 5} or factorial" if features < 5 else "use {plackett_burman: 12}"
    if word == "fractional" and features <= screening.MOST[4]:
        return "use {fractional: 4} or plackett_burman"
    most = max(screening.PLACKETT_BURMAN) - 1
    return "use plackett_burman" if features <= most else "use one_at_a_time, or fewer features"


def _members(loaded: Loaded) -> Iterator[str]:
    """Yield problems with features in `cells` and `exclude` that do not exist."""
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
    for level in experiment.all_levels():
        if not NAME.fullmatch(level.path[-1]):
            yield f"{loaded.at(*level.path)}{'.'.join(level.path)}: {level.path[-1]!r} is not a safe name"
    for name in ("baseline", "all_on", *([AA] if AA in experiment.design else [])):
        if name in (*known, *experiment.cells):
            yield f"{loaded.at('features', name)}{name}: reserved for a cell of the designs; choose another name"
    for name, other in _differing_in_case([*experiment.features, *experiment.cells, *known]):
        yield f"{loaded.at('features')}features: {name} and {other} differ only in case; rename one"
    if len(set(known)) < len(known):
        yield f"{loaded.at('features')}features: a level and a feature have the same name"


def _tuned(loaded: Loaded) -> Iterator[str]:
    """Yield the reasons why the setting under `tune` cannot be varied in every cell."""
    experiment, tune = loaded.experiment, loaded.experiment.tune
    if tune is None:
        return
    where, setting = f"{loaded.at('tune')}tune: ", tune.setting
    if not experiment.command and setting not in (known := [key for key, _ in keys()]):
        yield f"{where}no setting {setting!r}{hint(setting, known)}"
    if setting in loaded.forced:
        yield f"{where}--set {setting} gives every run one value; remove one of the two"
    for level in experiment.all_levels():
        if setting in level.overrides:
            yield (
                f"{loaded.at(*level.path, setting)}{level.label} sets {setting}, which `tune` varies in every cell; "
                "leave it out of the feature, or out of `tune`"
            )


def _labels(loaded: Loaded) -> list[str]:
    return [level.label for level in loaded.experiment.all_levels()]


def _differing_in_case(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of names that are the same on file systems that ignore case."""
    first: dict[str, str] = {}
    for name in dict.fromkeys(names):
        other = first.setdefault(name.casefold(), name)
        if other != name:
            yield other, name
