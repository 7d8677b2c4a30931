"""Expand an experiment into runs. Pure: reads no file, no clock and no environment variable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from ablatrix.orchestrator.study import dotted, field_checks, forecast, run_config, scale_checks
from ablatrix.orchestrator.study.designs import Cell, Labels, expand_cells
from ablatrix.orchestrator.study.run_config import without_corpus
from ablatrix.orchestrator.study.scale_checks import STEPS
from ablatrix.trainer.config.field_errors import spell
from ablatrix.trainer.rundir.errors import ConfigError

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.experiment import Loaded
    from ablatrix.orchestrator.study.extends import Overrides
    from ablatrix.orchestrator.study.levels import Level
    from ablatrix.orchestrator.study.run_config import Config, FollowCorpus, Vocabulary
    from ablatrix.orchestrator.study.scale import Size
    from ablatrix.orchestrator.study.tuning import Tuning

MOST_RUNS = 100_000


@dataclass(frozen=True)
class Run:
    """A training run: a cell and a seed, with the resolved configuration."""

    cell: str
    seed: int
    features: Labels
    overrides: Overrides  # the features' settings over the base, plus the tuned setting
    cell_config: Config  # shared by the runs of the cell; its seed is not the run's
    fingerprint: str  # of `config`
    tune: Tuning | None = None  # what the study tunes
    size: str = ""  # on the scale axis
    seed_shift: int = 0  # of the cell

    @property
    def id(self) -> str:
        """The name of the run's folder."""
        return f"{self.cell}-seed{self.seed}-{self.fingerprint}"

    @property
    def trained_seed(self) -> int:
        """The seed in `config`."""
        return self.seed + self.seed_shift

    @cached_property
    def config(self) -> Config:
        """The run's configuration."""
        return self.cell_config.with_seed(self.trained_seed)

    def shortened(self, steps: int) -> Run:
        """Return the run trained for only a few steps, for smoke tests."""
        run = replace(self, cell_config=self.cell_config.shortened(steps))
        return replace(run, fingerprint=run.config.fingerprint())


def first_of_cells(runs: Sequence[Run]) -> dict[str, Run]:
    """Return cell -> its first run."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.cell, run)
    return first


def merge_overrides(on: Iterable[Level]) -> Overrides:
    """Return the merged settings of the features that are on; later features win."""
    merged: Overrides = {}
    for level in on:
        merged = dotted.override(merged, level.overrides)
    return merged


def runs(loaded: Loaded, vocabulary: Vocabulary, follow_corpus: FollowCorpus = without_corpus) -> list[Run]:
    """Return the runs: every cell with every seed, at every size. Raise ConfigError with the problems of all cells.

    vocabulary: returns the vocabulary size of a configuration's tokenizer and its end-of-text token; follow_corpus:
    returns a configuration with the settings that depend on its corpus filled in.
    """
    experiment, designed = loaded.experiment, expand_cells(loaded)
    sizes = experiment.sizes
    _require_few(loaded, len(designed) * len(experiment.seed_list) * len(sizes))
    expansion = _Expansion(loaded, vocabulary, follow_corpus)
    planned = [(size, expansion.at_size(size, designed)) for size in sizes]
    problems = expansion.problems or scale_checks.order_problems(loaded, [(s, found[0].config) for s, found in planned])
    if not designed and not problems:
        problems = [f"{loaded.at('design')}design: no runs; add baseline, one_at_a_time or features"]
    if problems:
        raise ConfigError(problems)
    try:  # at the smallest size, where the noise is largest
        seeds = forecast.choose_seeds(experiment, planned[0][1][1].config, len(designed))
    except ConfigError as error:
        raise ConfigError([loaded.at("goal") + problem for problem in error.problems]) from None
    if experiment.tune:
        return _tuned_runs(loaded, planned[0][1][1:], seeds, vocabulary, follow_corpus)
    _require_few(loaded, len(designed) * len(seeds) * len(sizes))
    return [run for size, found in planned for one in found[1:] for run in _with_seeds(one, seeds, size=size.name)]


def _with_seeds(one: _Planned, seeds: Sequence[int], tune: Tuning | None = None, size: str = "") -> Iterator[Run]:
    """Yield the runs of a cell."""
    cell = one.cell
    for seed in seeds:
        fingerprint = one.fingerprint(seed + cell.seed_shift)
        yield Run(cell.name, seed, cell.features, one.overrides, one.config, fingerprint, tune, size, cell.seed_shift)


def _tuned_runs(
    loaded: Loaded,
    cells: Sequence[_Planned],
    seeds: Sequence[int],
    vocabulary: Vocabulary,
    follow_corpus: FollowCorpus,
) -> list[Run]:
    """Return the runs of a tuned study: the tuning runs, and the confirmation runs at each candidate."""
    experiment = loaded.experiment
    tune = experiment.tune
    assert tune is not None
    if common := sorted(set(tune.seeds) & set(seeds)):
        raise ConfigError([f"{loaded.at('tune')}tune: seed {common[0]} is in `seeds` too; tune with other seeds"])
    _require_few(loaded, len(cells) * (len(tune.candidates) * len(seeds) + len(tune.grid) * len(tune.seeds)))
    found: list[Run] = []
    faults: dict[str, str] = {}
    for cell, overrides in ((one.cell, one.overrides) for one in cells):
        for value in tune.candidates:
            tuned = {**overrides, tune.setting: value}
            settings = dotted.override(dotted.override(experiment.base, tuned), loaded.forced)
            try:
                config = run_config.resolve(experiment, settings, vocabulary, follow_corpus)
            except ConfigError as error:
                faults |= {fault: f"{loaded.at('tune')}tune: {fault}" for fault in error.problems}
                continue
            named = replace(cell, name=tune.name(cell.name, value), seed_shift=0)
            found += _with_seeds(_Planned(named, tuned, config), tune.seeds_at(value, seeds), tune)
    if faults:
        raise ConfigError(list(faults.values()))
    return found


@dataclass(frozen=True)
class _Planned:
    """A resolved cell at one size."""

    cell: Cell
    overrides: Overrides
    config: Config

    @cached_property
    def fingerprint(self) -> Callable[[int], str]:
        """The function that returns the fingerprint of the cell's run with a seed."""
        return self.config.fingerprint_by_seed()


class _Expansion:
    """Resolves the cells of an experiment; a fault in the base or in one feature is reported once."""

    def __init__(self, loaded: Loaded, vocabulary: Vocabulary, follow_corpus: FollowCorpus) -> None:
        self.loaded, self.vocabulary, self.follow_corpus = loaded, vocabulary, follow_corpus
        self._faults: dict[str, str] = {}
        self._same: list[str] = []
        self._steps: dict[str, int] = {}  # size -> optimizer steps, for a study with tokens_per_parameter

    @property
    def problems(self) -> list[str]:
        return [*self._faults.values(), *dict.fromkeys(self._same)]

    def at_size(self, size: Size, designed: Sequence[Cell]) -> list[_Planned]:
        """Return the base without features, then the cells; invalid ones are left out."""
        planned = []
        for cell in [Cell("", ()), *designed]:
            on = self.loaded.experiment.active_levels(cell.features)
            overrides = merge_overrides(on)
            for pair, fault in _undone_features(self.loaded, cell, on, overrides):
                self._faults.setdefault(pair, fault)
            try:
                config = self._resolve(size, overrides)
                planned.append(_Planned(replace(cell, name=size.cell(cell.name)), overrides, config))
            except ConfigError as error:
                for fault in error.problems:
                    self._faults.setdefault(fault, _placed(fault, self.loaded, cell, size))
        self._same += _same_cells(self.loaded, planned)
        return planned

    def _resolve(self, size: Size, overrides: Overrides) -> Config:
        """Return the configuration of a cell. Raise ConfigError."""
        experiment, scale = self.loaded.experiment, self.loaded.experiment.scale
        settings = dotted.override(experiment.base, size.settings)
        if scale and scale.tokens_per_parameter:
            if size.name not in self._steps:  # the same for all cells
                bare = dotted.override(settings, self.loaded.forced)
                base = run_config.resolve(experiment, bare, self.vocabulary, self.follow_corpus)
                self._steps[size.name] = steps_for(base, scale.tokens_per_parameter)
            settings = dotted.override(settings, {STEPS: self._steps[size.name]})
        settings = dotted.override(dotted.override(settings, overrides), self.loaded.forced)
        config = run_config.resolve(experiment, settings, self.vocabulary, self.follow_corpus)
        if problems := config.sharing_problems(experiment.slurm):
            raise ConfigError(problems)
        return config


def steps_for(base: Config, tokens_per_parameter: float) -> int:
    """Return the optimizer steps after which a model has seen this many tokens per parameter. Raise ConfigError."""
    if not (base.parameters and base.tokens and base.steps):
        raise ConfigError(
            ["scale.tokens_per_parameter: the parameters of this model are not known; scale trainer.max_iters"]
        )
    return max(1, round(tokens_per_parameter * base.parameters / (base.tokens / base.steps)))


def _require_few(loaded: Loaded, count: int) -> None:
    if count > MOST_RUNS:
        raise ConfigError([f"{loaded.at('seeds')}seeds: {count:,} runs are more than {MOST_RUNS:,}; use fewer"])


def _undone_features(
    loaded: Loaded, cell: Cell, on: Sequence[Level], overrides: Overrides
) -> Iterator[tuple[str, str]]:
    """Yield (pair, fault) for features undone by another feature of the cell, which makes the cell's name misleading.

    This covers two components in the same place of the model, and a feature with no effect left. A schedule may include
    a learning rate that another feature overrides.
    """
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


def _placed(problem: str, loaded: Loaded, cell: Cell, size: Size) -> str:
    """Prefix a trainer's `key: fault` with file and line, and with the cell unless the value alone is at fault."""
    key = problem.partition(":")[0]
    scaled = next((name for name in size.settings if name == key or name.startswith(f"{key}.")), None)
    path: tuple[str, ...] = ("scale", scaled) if scaled else ("base", key)
    value = size.settings[scaled] if scaled else loaded.experiment.base.get(key)
    culprit = f"size {size.name}: " if size.name else ""
    if cell.features:
        on = loaded.experiment.active_levels(cell.features)
        level = next((level for level in reversed(on) if key in level.overrides), on[-1])
        path, culprit = (*level.path, key), f"cell {size.cell(cell.name)}: "
        value = level.overrides.get(key)
    if problem == f"{key}: {field_checks.value_problem(key, value)}":
        return f"{loaded.at(*path)}{'.'.join(path)}{problem.removeprefix(key)}"
    return f"{loaded.at(*path)}{culprit}{problem}"


def _same_cells(loaded: Loaded, planned: Sequence[_Planned]) -> list[str]:
    """Return the cells of a size with the same configuration, typically due to features that change nothing."""
    first: dict[str, _Planned] = {}
    blamed: set[str] = set()
    problems = []
    for one in planned:
        cell, overrides = one.cell, one.overrides
        before = first.setdefault(one.fingerprint(0), one)
        other = before.cell
        if before is one or not (cell.features or other.features) or blamed.intersection(cell.features):
            continue
        blamed.update(cell.features)
        where = loaded.at("features", cell.features[0] if cell.features else "")
        settings = ", ".join(f"{key}: {spell(value)}" for key, value in overrides.items())
        if other.features:
            problems.append(f"{where}cell {cell.name} is the same configuration as cell {other.name} ({settings})")
        else:
            why = ", ".join(f"--set {key} overrides it" for key in overrides if key in loaded.forced)
            if not why and one.config.as_tree() == before.config.as_tree():
                why = f"base and defaults already say {settings}"
            why = why or f"{settings} is not part of training"
            problems.append(f"{where}cell {cell.name} changes nothing: {why}")
    return problems
