"""Expand an experiment into cells and runs. Pure: reads no file, no clock and no environment variable."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ablatrix.orchestrator.study import dotted, run_config
from ablatrix.orchestrator.study.experiment import Experiment, Loaded
from ablatrix.orchestrator.study.extends import Overrides
from ablatrix.orchestrator.study.run_config import Config
from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.rundir.errors import ConfigError

LONGEST_NAME = 80
MOST_CELLS = 10_000
MOST_COMBINATIONS = 100_000  # of a factorial design, including those that `exclude` removes
MOST_RUNS = 100_000

Labels = tuple[str, ...]  # features that are on: ("swiglu",) or ("lr.high", "rope"), in the file's order


@dataclass(frozen=True)
class Cell:
    """A set of features that are on."""

    name: str
    features: Labels


@dataclass(frozen=True)
class Run:
    """A training run: a cell and a seed, with the resolved configuration."""

    cell: str
    seed: int
    features: Labels
    overrides: Overrides  # of the features over the base
    config: Config

    @property
    def id(self) -> str:
        """The name of the run's folder."""
        return f"{self.cell}-seed{self.seed}-{self.config.fingerprint()}"


def cells(experiment: Experiment) -> list[Cell]:
    """Return the cells of the design, in order; a set of features that two designs share has its first name."""
    labels = [[level.label for level in group] for group in experiment.levels()]
    flat = [label for group in labels for label in group]
    all_on = tuple(group[0] for group in labels)
    chosen: dict[frozenset[str], Cell] = {}
    names: set[str] = set()
    excluded_sets = [frozenset(combination) for combination in experiment.exclude]

    def add(name: str, features: Sequence[str]) -> None:
        key = frozenset(features)
        if key in chosen or any(combination <= key for combination in excluded_sets):
            return
        if len(chosen) == MOST_CELLS:
            raise ConfigError([f"design: more than {MOST_CELLS:,} cells; use {{factorial: 2}} or fewer features"])
        if name in names:
            raise ConfigError([f"design: two different cells would be called {name}; rename the one under cells"])
        names.add(name)
        chosen[key] = Cell(name, tuple(label for label in flat if label in key))

    for item in experiment.design:
        word, order = next(iter(item.items())) if isinstance(item, dict) else (item, len(labels))
        if word == "baseline":
            add("baseline", ())
        elif word == "one_at_a_time":
            for label in flat:
                add(label, (label,))
        elif word == "all_on":
            add("all_on", all_on)
        elif word == "leave_one_out":
            add("all_on", all_on)
            for left_out in all_on:
                add(f"without-{left_out}", [label for label in all_on if label != left_out])
        elif word == "factorial":
            for number, features in enumerate(_factorial(labels, order)):
                if number == MOST_COMBINATIONS:
                    raise ConfigError([f"design: more than {MOST_COMBINATIONS:,} combinations; use {{factorial: 2}}"])
                add(_combined_name(features), features)
    for name, members in experiment.cells.items():
        add(name, members)
    return list(chosen.values())


def _factorial(labels: Sequence[Sequence[str]], order: int) -> Iterator[Labels]:
    """Yield each combination of at most `order` features at each of their levels; small sets first."""
    for size in range(min(order, len(labels)) + 1):
        for groups in itertools.combinations(labels, size):
            yield from itertools.product(*groups)


def _combined_name(features: Labels) -> str:
    name = "+".join(features) or "baseline"
    if len(name) > LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{len(features)}-features-{digest}"
    return name


def overrides_of(experiment: Experiment, features: Labels) -> Overrides:
    """Return the settings of the features; later features win."""
    merged: Overrides = {}
    for level in itertools.chain.from_iterable(experiment.levels()):
        if level.label in features:
            merged = dotted.override(merged, level.overrides)
    return merged


def runs(loaded: Loaded, vocab_size: Callable[[RunConfig], int]) -> list[Run]:
    """Return the runs, every cell with every seed. Raise ConfigError with the problems of all cells.

    vocab_size: returns the number of tokens of a configuration's tokenizer.
    """
    experiment = loaded.experiment
    planned: list[tuple[Cell, Overrides, Config]] = []
    faults: dict[str, str] = {}  # a fault of the base, or of one feature, is reported once and not for each cell
    bare = Cell("", ())
    designed = cells(experiment)
    count = len(designed) * len(experiment.seed_list)
    if count > MOST_RUNS:
        raise ConfigError([f"{loaded.at('seeds')}seeds: {count:,} runs are more than {MOST_RUNS:,}; use fewer"])
    for cell in [bare, *designed]:
        overrides = overrides_of(experiment, cell.features)
        for pair, fault in _undone_features(loaded, cell, overrides):
            faults.setdefault(pair, fault)
        try:
            settings = dotted.override(dotted.override(experiment.base, overrides), loaded.forced)
            config = run_config.resolve(experiment, settings, vocab_size)
            problems = config.sharing_problems(experiment.slurm)
            if problems:
                raise ConfigError(problems)
            planned.append((cell, overrides, config))
        except ConfigError as error:
            for fault in error.problems:
                faults.setdefault(fault, _placed(fault, loaded, cell))
    problems = list(faults.values()) + _same_cells(loaded, planned)
    runs = planned[1:]
    if not runs and not problems:
        problems.append(f"{loaded.at('design')}design: gives no run; add baseline, one_at_a_time or features")
    if problems:
        raise ConfigError(problems)
    return [
        Run(cell.name, seed, cell.features, overrides, config.with_seed(seed))
        for cell, overrides, config in runs
        for seed in experiment.seed_list
    ]


def _undone_features(loaded: Loaded, cell: Cell, overrides: Overrides) -> Iterator[tuple[str, str]]:
    """Yield (pair, fault) for features that another feature of the cell undoes, so that the cell's name misleads.

    These are two components in one place of the model, and a feature of which nothing is left. A schedule may bring a
    learning rate that another feature overrides.
    """
    on = [level for group in loaded.experiment.levels() for level in group if level.label in cell.features]
    for level in on:
        kept = {k for k, value in level.overrides.items() if k in overrides and overrides[k] == value}
        lost = [k for k in level.overrides if k not in kept and k not in loaded.forced]
        if not lost or not (len(lost) == len(level.overrides) or any(key.startswith("model.") for key in lost)):
            continue
        key = next((key for key in lost if key.startswith("model.")), lost[0])
        of = key if key in overrides else next(k for k in dotted.parents(key) if k in overrides)
        winner = next(other for other in reversed(on) if of in other.overrides)
        undone = f"{of}: {spell(overrides[of])}" if of != key else spell(overrides[of])
        yield (
            f"{level.label} {winner.label}",
            f"{loaded.at(*level.path, key)}cell {cell.name}: {level.label} sets {key}: {spell(level.overrides[key])}, "
            f"and {winner.label} sets {undone}; leave the two out together with "
            f"`exclude: [[{level.label}, {winner.label}]]`, or make them levels of one feature",
        )


def _placed(problem: str, loaded: Loaded, cell: Cell | None) -> str:
    """Return a trainer's `key: fault` with the file and line of the key."""
    key = problem.partition(":")[0]
    path: tuple[str, ...] = ("base", key)
    culprit = ""
    if cell and cell.features:
        on = [level for group in loaded.experiment.levels() for level in group if level.label in cell.features]
        level = next((level for level in reversed(on) if key in level.overrides), on[-1])
        path, culprit = (*level.path, key), f"cell {cell.name}: "
    return f"{loaded.at(*path)}{culprit}{problem}"


def _same_cells(loaded: Loaded, planned: Sequence[tuple[Cell, Overrides, Config]]) -> list[str]:
    """Return the cells that have the same configuration, above all features that change nothing."""
    first: dict[str, Cell] = {}
    blamed: set[str] = set()
    problems = []
    for cell, overrides, config in planned:
        other = first.setdefault(config.fingerprint(), cell)
        if other is cell or not (cell.features or other.features) or blamed.intersection(cell.features):
            continue
        blamed.update(cell.features)
        where = loaded.at("features", cell.features[0] if cell.features else "")
        settings = ", ".join(f"{key}: {spell(value)}" for key, value in overrides.items())
        if other.features:
            problems.append(f"{where}cell {cell.name}: is the same configuration as cell {other.name} ({settings})")
        else:
            why = ", ".join(f"--set {key} wins over it" for key in overrides if key in loaded.forced)
            why = why or f"base and defaults already say {settings}"
            problems.append(f"{where}cell {cell.name}: changes nothing: {why}")
    return problems
