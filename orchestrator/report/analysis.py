"""Compare every cell of a study with the baseline, on every measure: numbers and flags, no prose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ablatrix.orchestrator.report import aa_check, budgets, contrasts, documents, formatting, step_times, tuned
from ablatrix.orchestrator.report import statistics as st
from ablatrix.orchestrator.report.attribution import Attribution, attribute
from ablatrix.orchestrator.report.cell_result import CellResult
from ablatrix.orchestrator.report.changes import find_changes
from ablatrix.orchestrator.report.collect import find_reference
from ablatrix.orchestrator.report.comparison import Comparison, compare
from ablatrix.orchestrator.report.decisions import Verdict, decide, lost_more_runs
from ablatrix.orchestrator.report.step_times import StepTimes
from ablatrix.orchestrator.status import device_hours
from ablatrix.orchestrator.study.designs import screen_of

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.aa_check import AACheck
    from ablatrix.orchestrator.report.budgets import Matched
    from ablatrix.orchestrator.report.collect import RunRecord, Study
    from ablatrix.orchestrator.report.documents import TextError
    from ablatrix.orchestrator.report.progress import Progress
    from ablatrix.orchestrator.report.statistics import Effect
    from ablatrix.orchestrator.status.device_hours import Hours
    from ablatrix.orchestrator.study.metric import Measure
    from ablatrix.orchestrator.study.tuning import Tuning


@dataclass(frozen=True)
class Analysis:
    """Everything the pages show. cells: in the study's order, including the reference.

    comparison: how the effects at equal tokens were estimated; margin: effects below it are negligible according to the
    author; progress: through the planned looks, None if there are none; ladder: set if the study has a scale axis, in
    which case this is the analysis of one size; attribution: the effect of all features divided among them, where the
    design identifies it; tuned: the arms of a tuned study, whose cells hold the confirmation runs at each arm's best
    value.
    """

    study: Study
    reference: str | None
    cells: dict[str, CellResult]
    comparison: Comparison = field(default_factory=Comparison)
    combinations: contrasts.Combinations = field(default_factory=contrasts.Combinations)
    factorial: bool = False
    margin: float | None = None
    times: StepTimes = field(default_factory=StepTimes)
    progress: Progress | None = None
    ladder: Ladder | None = None
    attribution: Attribution | None = None
    aa: AACheck | None = None
    tuned: tuned.Tuned | None = None

    @property
    def whole(self) -> Study:
        """The study with the runs of all sizes."""
        return self.ladder.study if self.ladder else self.study

    @property
    def by_size(self) -> dict[str, Analysis]:
        """Size -> its analysis, from small to large; without a scale axis, this analysis under the key ""."""
        return self.ladder.sizes if self.ladder else {"": self}

    @cached_property
    def hours(self) -> Hours:
        """GPU-hours or CPU-hours of the study."""
        return device_hours.total([use for run in self.whole.runs for use in run.uses])

    @property
    def noise(self) -> float | None:
        """Standard deviation of a run that its seed does not explain; without a pool, the reference's over seeds."""
        if self.comparison.noise:
            return self.comparison.noise.sd
        return self.base.sd if self.base else None

    @cached_property
    def detectable(self) -> float | None:
        """Half-width of the narrowest simultaneous interval: no smaller difference is shown."""
        return min((half for c in self.compared if c.effect and (half := c.effect.joint_half_width)), default=None)

    @cached_property
    def decimals(self) -> int:
        """Decimals of effects and values: enough for two significant digits of the uncertainty."""
        least = formatting.LEAST_OF_NLL if self.measure.is_nll else 0
        size = max((abs(cell.mean) for cell in self.cells.values() if cell.mean), default=1.0)
        if self.detectable:
            return formatting.decimals_for(self.detectable, least, size)
        return formatting.usual_decimals(size)

    @property
    def interval_name(self) -> str:
        """Name of the simultaneous interval in tables; no level with planned looks, as each look has its own."""
        return "interval" if self.progress else "95% interval"

    @property
    def interactions(self) -> tuple[contrasts.Contrast, ...]:
        return self.combinations.interactions

    @property
    def main_effects(self) -> tuple[contrasts.Contrast, ...]:
        return self.combinations.main_effects

    @property
    def left_out(self) -> tuple[contrasts.Contrast, ...]:
        return self.combinations.left_out

    @cached_property
    def compared(self) -> list[CellResult]:
        """Every cell except the reference."""
        return [cell for name, cell in self.cells.items() if name != self.reference]

    @cached_property
    def budget(self) -> str:
        """Unit of the training budget: `tokens`, or `steps` for a command that reports no tokens."""
        known = any(not r.command or np.isfinite(r.curve.train["tokens"]).any() for r in self.study.runs)
        return "tokens" if known or not self.study.runs else "steps"

    @property
    def base(self) -> CellResult | None:
        return self.cells.get(self.reference or "")

    @property
    def measure(self) -> Measure:
        """Measure of the baseline's values."""
        return self.base.measure if self.base else self.study.measure

    @cached_property
    def family(self) -> int:
        """Number of comparisons that the verdicts are corrected for."""
        return sum(cell.effect is not None and cell.effect.p_joint is not None for cell in self.compared)

    @property
    def p_name(self) -> str:
        """Name of the p values of verdicts in tables."""
        return formatting.p_name(self.family)

    @property
    def single_seed(self) -> bool:
        """True if there are effects but none has an interval."""
        return any(cell.effect for cell in self.compared) and self.family == 0


@dataclass(frozen=True, eq=False)
class Ladder:
    """A study with a scale axis. sizes: size -> analysis of its runs, small to large; shown: size of the main one."""

    study: Study
    sizes: dict[str, Analysis]
    shown: str


def analyze(study: Study, alpha: float = st.ALPHA) -> Analysis:
    """Compare every cell of a study with its baseline, using all runs at once.

    With a scale axis, compare within each size and return the analysis of the largest size at which anything can be
    compared; tuned cells are compared at their own best values. alpha: error rate of each table.
    """
    if study.tune and study.runs:
        return _analyse_tuned(study, study.tune, alpha)
    if not study.sizes:
        return _analyse(study, alpha)
    sizes = {size: _analyse(study.at_size(size), alpha) for size in study.sizes}
    compared = [size for size, found in sizes.items() if any(cell.effect for cell in found.compared)]
    shown = (compared or list(sizes))[-1 if compared else 0]
    return replace(sizes[shown], ladder=Ladder(study, sizes, shown))


def _analyse_tuned(study: Study, tune: Tuning, alpha: float) -> Analysis:
    arms = tuned.find_arms(study, tune)
    found = _analyse(tuned.confirmed(study, arms), alpha)
    return replace(found, tuned=tuned.with_equal(arms, study.measure, study.margin))


def _analyse(study: Study, alpha: float) -> Analysis:
    cells = {
        name: CellResult(
            name,
            runs[0].features,
            find_changes(k for run in runs for k in run.overrides),
            runs,
            study_measure=study.measure,
        )
        for name, runs in study.cells.items()
        if runs != aa_check.runs_of(study)
    }
    reference = find_reference({name: cell.runs for name, cell in cells.items()})
    if reference is None:
        return Analysis(study, None, cells)
    times = step_times.measure(study.cells, reference)
    seconds = budgets.seconds({} if times.withheld else times.seconds)
    usable = {name: cell.usable for name, cell in cells.items()}
    matched = budgets.match(usable, reference, budgets.tokens, final=True)
    same = _identical_cells(usable, reference)
    comparison = compare(matched.comparable, reference, same, alpha=alpha)
    found = []
    for axis in (budgets.flops, seconds):
        values = budgets.match(usable, reference, axis).comparable
        equal = values == matched.comparable  # where every cell costs the same
        found.append(comparison if equal else compare(values, reference, same, alpha=alpha))
    cells = _with_effects(cells, cells[reference], matched, (comparison, *found), seconds)
    cells = {name: replace(cell, step_seconds=times.of(name)) for name, cell in cells.items()}
    design = replace(_design(study, cells, matched), alpha=alpha)
    factorial = len(design.factors) > 2 and (design.is_factorial or design.screen is not None)
    cells = {n: _judged(cell, cells[reference], comparison, study.margin, factorial) for n, cell in cells.items()}
    made = Analysis(study, reference, cells, comparison, contrasts.combine(design), factorial, study.margin, times)
    return replace(made, attribution=attribute(design), aa=aa_check.check(study, reference))


def _with_effects(
    cells: Mapping[str, CellResult],
    base: CellResult,
    matched: Matched,
    comparisons: Sequence[Comparison],
    seconds: budgets.Axis,
) -> dict[str, CellResult]:
    """Return the cells with their effects. comparisons: at equal tokens, training FLOPs and training time."""
    higher, contexts = base.study_measure.higher_is_better, _contexts(base)
    targets = [budgets.find_target(base.usable, axis, higher) for axis in (budgets.tokens, seconds)]
    tokens, flops, time = (comparison.effects for comparison in comparisons)
    return {
        name: replace(
            cell,
            effect=tokens.get(name),
            equal_flops=flops.get(name),
            equal_seconds=time.get(name),
            at_budget=matched.values.get(name, {}),
            read_off=name in matched.read_off,
            incomparable=_other_context(_contexts(cell), contexts),
            text_error=_text_error(cell, base, tokens.get(name), matched),
            tokens_to=budgets.cost_to_baseline(cell.usable, targets[0]),
            seconds_to=budgets.cost_to_baseline(cell.usable, targets[1]),
        )
        for name, cell in cells.items()
    }


def _text_error(cell: CellResult, base: CellResult, effect: Effect | None, matched: Matched) -> TextError | None:
    """Return the standard errors of an effect over seeds and documents; None unless it is at the end of training."""
    if cell.name == base.name or cell.name in matched.read_off:
        return None
    return documents.text_error(cell.usable, base.usable, effect)


def _judged(
    cell: CellResult, base: CellResult, comparison: Comparison, margin: float | None, factorial: bool
) -> CellResult:
    """Return the cell with its verdict. factorial: only main effects are tested."""
    if cell.name == base.name:
        return cell
    verdict = decide(cell.effect, cell.study_measure, margin, comparison.resolution)
    if cell.effect is None and cell.diverged and not cell.values:
        verdict = Verdict.DIVERGED
    elif cell.effect and lost_more_runs(len(cell.diverged), cell.done, len(base.diverged), base.done):
        verdict = Verdict.UNSTABLE
    elif cell.effect and (cell.incomparable or factorial) and verdict is not Verdict.IDENTICAL:
        verdict = Verdict.NO_CLAIM
    return replace(cell, verdict=verdict)


def _identical_cells(usable: Mapping[str, tuple[RunRecord, ...]], reference: str) -> set[str]:
    """Return the cells whose runs all ended and trained exactly like the baseline's run of the same seed."""
    base = {run.seed: run for run in usable[reference]}
    return {name for name, runs in usable.items() if name != reference and runs and _same_runs(runs, base)}


def find_twins(cells: Sequence[CellResult]) -> list[list[str]]:
    """Return the groups of cells whose runs are bit-identical to each other's, seed by seed."""
    equal_ends: dict[tuple[tuple[int, float], ...], list[list[CellResult]]] = {}
    for cell in (cell for cell in cells if cell.usable):
        groups = equal_ends.setdefault(tuple(cell.values.items()), [])
        by_seed = {run.seed: run for run in cell.usable}
        same = next((group for group in groups if _same_runs(group[0].usable, by_seed)), None)
        if same is None:
            groups.append([cell])
        else:
            same.append(cell)
    return [[cell.name for cell in group] for groups in equal_ends.values() for group in groups if len(group) > 1]


def _same_runs(runs: Iterable[RunRecord], by_seed: Mapping[int, RunRecord]) -> bool:
    return all(run.seed in by_seed and _same_run(run, by_seed[run.seed]) for run in runs)


def _same_run(run: RunRecord, other: RunRecord) -> bool:
    same_end = run.value == other.value and run.number("tokens") == other.number("tokens")
    curves = ((r.curve.train["loss"], r.curve.held_out["val_loss"]) for r in (run, other))
    same = all(np.array_equal(mine, theirs, equal_nan=True) for mine, theirs in zip(*curves, strict=True))
    return same_end and same and run.flops_per_token == other.flops_per_token


def _contexts(cell: CellResult) -> set[Any]:
    """Return the lengths of the contexts that the NLL of a cell's runs is over."""
    return {run.setting("data.block_size") for run in cell.usable if not run.command} - {None}


def _other_context(mine: set[Any], theirs: set[Any]) -> str:
    """Return why NLLs over these contexts cannot be compared, "" if they can."""
    if mine and theirs and mine != theirs:
        return f"its NLL is over contexts of {_listed(mine)} tokens, the baseline's over {_listed(theirs)}"
    return ""


def _listed(values: Iterable[Any]) -> str:
    return " and ".join(map(str, sorted(values)))


def _design(study: Study, cells: Mapping[str, CellResult], matched: Matched) -> contrasts.Design:
    sets: dict[frozenset[str], str] = {}
    for name, cell in cells.items():
        sets.setdefault(frozenset(cell.features), name)
    used = [feature for cell in cells.values() for feature in cell.features]
    factors: dict[str, tuple[str, ...]] = {}
    for name, body in study.features.items():
        levels = body.get("levels") if set(body) == {"levels"} else None
        labels = [f"{name}.{key}" for key in levels] if isinstance(levels, dict) else [name]
        if on := tuple(label for label in labels if label in used):
            factors[name] = on
    known = {label for labels in factors.values() for label in labels}
    factors |= {label: (label,) for label in dict.fromkeys(used) if label not in known}
    expected = {name: len(cell.runs) for name, cell in cells.items()}
    screen = screen_of(study.design, len(factors)) if len(factors) == len(study.features) else None
    return contrasts.Design(sets, factors, matched.comparable, expected, screen)
