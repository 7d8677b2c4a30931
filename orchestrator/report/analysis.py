"""Compare every cell of a study with the baseline, on every measure: numbers and flags, without words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ablatrix.orchestrator.report import formatting, step_times
from ablatrix.orchestrator.report import statistics as st
from ablatrix.orchestrator.report.decisions import Verdict, decide
from ablatrix.orchestrator.report.step_times import StepTimes
from ablatrix.orchestrator.status import device_hours
from ablatrix.orchestrator.study.metric import NLL, Measure

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.collect import RunRecord, Study
    from ablatrix.orchestrator.report.statistics import Effect, Reach
    from ablatrix.orchestrator.status.device_hours import Hours

KINDS = {"trainer": "schedule", "model": "model", "data": "data", "system": "system"}
MATCHED = 0.01  # parameter counts within 1% count as matched


@dataclass(frozen=True)
class CellResult:
    """A cell, its runs, and how it compares with the baseline (all effects None for the baseline itself).

    effect: final value at equal tokens, the headline; equal_flops, equal_seconds: the same at equal training compute
    and time, read off the curve of the measure; *_to: what it took to reach the baseline's final value.
    read_off: the headline too had to be read off a curve, because the cell trained on another number of tokens.
    """

    name: str
    features: tuple[str, ...]
    kind: str
    runs: tuple[RunRecord, ...]
    verdict: Verdict = Verdict.BASELINE
    effect: Effect | None = None
    equal_flops: Effect | None = None
    equal_seconds: Effect | None = None
    tokens_to: Reach | None = None
    seconds_to: Reach | None = None
    read_off: bool = False
    study_measure: Measure = NLL

    @cached_property
    def usable(self) -> tuple[RunRecord, ...]:
        return tuple(run for run in self.runs if run.usable)

    @cached_property
    def values(self) -> dict[int, float]:
        """seed -> final value of the runs that finished and did not diverge."""
        return {run.seed: run.value for run in self.usable if run.value is not None}

    @property
    def measure(self) -> Measure:
        """Measure of its values: the training loss for a command that reports no held-out loss."""
        training = self.usable and all(r.measure == "loss" for r in self.usable)
        return self.study_measure.on_training() if training else self.study_measure

    @property
    def done(self) -> int:
        return sum(run.finished for run in self.runs)

    @property
    def diverged(self) -> tuple[int, ...]:
        """Seeds that diverged."""
        return tuple(run.seed for run in self.runs if run.diverged)

    @property
    def mean(self) -> float | None:
        return sum(self.values.values()) / len(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        return st.spread(self.values)

    @property
    def parameters(self) -> int | None:
        return next((run.parameters for run in self.runs if run.parameters), None)

    @property
    def flops_per_token(self) -> int | None:
        return next((run.flops_per_token for run in self.runs if run.flops_per_token), None)

    def average(self, name: str) -> float | None:
        """Mean of a number of summary.json over the finished runs that have it."""
        found = [v for run in self.runs if (v := run.number(name)) is not None]
        return sum(found) / len(found) if found else None

    @property
    def seconds_per_run(self) -> float | None:
        """Training time of a run by its steps and the cell's seconds per step; None where time is not compared."""
        steps, each = self.average("iters"), self.runs[0].cell_step_seconds if self.runs else None
        return steps * each if steps and each else None

    @property
    def tokens_per_second(self) -> float | None:
        tokens, seconds = self.average("tokens"), self.seconds_per_run
        return tokens / seconds if tokens and seconds else None

    @property
    def hours(self) -> Hours:
        """GPU-hours or CPU-hours of all attempts at its runs."""
        return device_hours.total([use for run in self.runs for use in run.uses])


@dataclass(frozen=True)
class Contrast:
    """A named combination of cells with its effect, corrected within its own table."""

    name: str
    effect: Effect | None
    missing: int = 0


@dataclass(frozen=True)
class Analysis:
    """Everything the pages show. cells: in the study's order; the reference is among them."""

    study: Study
    reference: str | None
    cells: dict[str, CellResult]
    noise: float | None  # standard deviation of the reference over seeds
    interactions: tuple[Contrast, ...]
    main_effects: tuple[Contrast, ...]
    left_out: tuple[Contrast, ...]
    times: StepTimes

    @cached_property
    def hours(self) -> Hours:
        """GPU-hours or CPU-hours of the study."""
        return device_hours.total([use for run in self.study.runs for use in run.uses])

    @cached_property
    def compared(self) -> list[CellResult]:
        """Every cell but the reference."""
        return [cell for name, cell in self.cells.items() if name != self.reference]

    @cached_property
    def budget(self) -> str:
        """Unit of training: `tokens`, or `steps` for a command that reports no tokens."""
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

    @cached_property
    def detectable(self) -> float | None:
        """Median half-width of the simultaneous intervals: a larger difference is shown, a smaller one is not."""
        halves = sorted(half for c in self.compared if c.effect and (half := c.effect.joint_half_width))
        return halves[len(halves) // 2] if halves else None

    @cached_property
    def decimals(self) -> int:
        """Decimals of effects and values: two digits of the uncertainty."""
        least = formatting.LEAST_OF_NLL if self.measure.is_nll else 0
        return formatting.decimals_for(self.detectable, least) if self.detectable else formatting.USUAL_DECIMALS

    @property
    def single_seed(self) -> bool:
        """True if there are effects, but none with an interval."""
        return any(cell.effect for cell in self.compared) and self.family == 0


def analyse(study: Study) -> Analysis:
    """Compare every cell of a study with its baseline."""
    cells = {
        name: CellResult(
            name,
            runs[0].features,
            kind_of(k for run in runs for k in run.overrides),
            runs,
            study_measure=study.measure,
        )
        for name, runs in study.cells.items()
    }
    reference = find_reference(cells.values())
    times = step_times.measure(study.cells, reference) if reference else StepTimes()
    cells = {name: _timed(cell, times.of(name)) for name, cell in cells.items()}
    if reference:
        base = cells[reference]
        results = [_compare(cell, base) for cell in cells.values()]
        joint = st.bonferroni([r.effect for r in results])
        cells = {r.name: _judged(replace(r, effect=e), base) for r, e in zip(results, joint, strict=True)}
    values = {name: cell.values for name, cell in cells.items()}
    sets: dict[frozenset[str], str] = {}
    for name, cell in cells.items():
        sets.setdefault(frozenset(cell.features), name)
    factors = list(dict.fromkeys([f for f in study.features if any(f in s for s in sets)] + _all_features(cells)))
    interactions, main_effects = _factors(sets, values, factors)
    return Analysis(
        study=study,
        reference=reference,
        cells=cells,
        noise=cells[reference].sd if reference else None,
        interactions=interactions,
        main_effects=main_effects,
        left_out=_left_out(sets, values, factors),
        times=times,
    )


def _timed(cell: CellResult, step_seconds: float | None) -> CellResult:
    return replace(cell, runs=tuple(replace(run, cell_step_seconds=step_seconds) for run in cell.runs))


def _judged(cell: CellResult, base: CellResult) -> CellResult:
    if cell.name == base.name:
        return cell
    return replace(cell, verdict=decide(cell.effect, bool(cell.diverged) and not cell.values, cell.study_measure))


def _all_features(cells: Mapping[str, CellResult]) -> list[str]:
    return [feature for cell in cells.values() for feature in cell.features]


def find_reference(cells: Iterable[CellResult]) -> str | None:
    """Return the cell without features; if the design has none, its first cell."""
    names = list(cells)
    return next((c.name for c in names if not c.features), names[0].name if names else None)


def kind_of(keys: Iterable[str]) -> str:
    """Return what overrides change: "model", "schedule" (trainer.*), "data", several: "mixed", nothing: ""."""
    kinds = {KINDS.get(key.partition(".")[0], "other") for key in keys}
    return kinds.pop() if len(kinds) == 1 else ("mixed" if kinds else "")


# ---- one cell against the baseline -----------------------------------------------------------------------------------


def _compare(cell: CellResult, base: CellResult) -> CellResult:
    if cell is base:
        need, seconds = _reach(cell, base, "tokens"), _reach(cell, base, "seconds")
        return replace(cell, tokens_to=need, seconds_to=seconds)
    effect, read_off = _effect_at(cell, base, _tokens)
    return replace(
        cell,
        effect=effect,
        read_off=read_off,
        equal_flops=_effect_at(cell, base, _flops)[0],
        equal_seconds=_effect_at(cell, base, _seconds)[0],
        tokens_to=_reach(cell, base, "tokens"),
        seconds_to=_reach(cell, base, "seconds"),
    )


def _tokens(run: RunRecord) -> np.ndarray | None:
    return run.evaluations[0]


def _seconds(run: RunRecord) -> np.ndarray | None:
    return run.evaluations[1]


def _flops(run: RunRecord) -> np.ndarray | None:
    return run.evaluations[0] * run.flops_per_token if run.flops_per_token else None


def _effect_at(
    cell: CellResult, base: CellResult, axis: Callable[[RunRecord], np.ndarray | None]
) -> tuple[Effect | None, bool]:
    """Effect where all runs of both cells have spent the same, and whether a curve had to be read between its ends.

    The common budget is what the cheapest of the runs spent in all.
    """
    axes = {run.id: axis(run) for run in (*cell.usable, *base.usable)}
    spent = [a[-1] for a in axes.values() if a is not None and len(a) and np.isfinite(a[-1])]
    if len(spent) < len(axes) or not cell.usable or not base.usable:
        unknown = axis is _tokens  # the final value stands even where nothing is known about tokens
        return (st.difference(cell.values, base.values) if unknown else None), False
    budget = min(spent)
    read_off = max(spent) > budget * 1.001

    def values(result: CellResult) -> dict[int, float]:
        found = {}
        for run in result.usable:
            x, y = axes[run.id], run.evaluations[2]
            value = run.value if x is None or x[-1] <= budget * 1.001 else st.at(x, y, budget)
            if value is not None:
                found[run.seed] = value
        return found

    return st.difference(values(cell), values(base)), read_off


def _reach(cell: CellResult, base: CellResult, unit: str) -> Reach | None:
    """Return the cost of reaching the baseline's final value of the same seed (else its mean)."""
    if base.mean is None or not cell.usable:
        return None
    which = 0 if unit == "tokens" else 1
    sign = -1.0 if cell.study_measure.higher_is_better else 1.0
    need: dict[int, float | None] = {}
    limit, own = {}, {}
    for run in cell.usable:
        curve = run.evaluations
        if not len(curve[which]) or not np.isfinite(curve[which][-1]):
            continue
        need[run.seed] = st.first_reach(curve[which], sign * curve[2], sign * base.values.get(run.seed, base.mean))
        limit[run.seed] = float(curve[which][-1])
    for run in base.usable:
        curve = run.evaluations
        first = st.first_reach(curve[which], sign * curve[2], sign * base.values[run.seed])
        if first is not None and np.isfinite(first):
            own[run.seed] = first
    return st.reach(need, limit, own) if need else None


# ---- combinations of cells -------------------------------------------------------------------------------------------


def corrected(contrasts: list[Contrast]) -> tuple[Contrast, ...]:
    """Return the contrasts of one table with simultaneous intervals and p values."""
    joint = st.bonferroni([c.effect for c in contrasts])
    return tuple(replace(c, effect=e) for c, e in zip(contrasts, joint, strict=True))


def _factors(
    sets: Mapping[frozenset[str], str], values: Mapping[str, st.Values], factors: list[str]
) -> tuple[tuple[Contrast, ...], tuple[Contrast, ...]]:
    """(interactions, main effects): of a full factorial design, else of every cell whose single features are there."""
    if len(factors) >= 2 and len(sets) == 2 ** len(factors):
        found = st.factorial({s: values[name] for s, name in sets.items()}, factors)
        named = [Contrast(" × ".join(f.factors), f.effect, missing=f.missing) for f in found]
        main, pairs = named[: len(factors)], named[len(factors) :]
        both = [] if len(factors) == 2 else [_sum_of_singles(frozenset(factors), sets, values)]
        return corrected(pairs + both), corrected(main)
    combined = [s for s in sets if len(s) >= 2 and all(frozenset([f]) in sets for f in s)]
    if frozenset() not in sets:
        return (), ()
    return corrected([_sum_of_singles(s, sets, values) for s in combined]), ()


def _sum_of_singles(
    features: frozenset[str], sets: Mapping[frozenset[str], str], values: Mapping[str, st.Values]
) -> Contrast:
    """(cell - baseline) minus the sum of (single feature - baseline): 0 where effects add up."""
    weights = {sets[features]: 1.0, sets[frozenset()]: len(features) - 1.0}
    weights |= {sets[frozenset([f])]: -1.0 for f in features}
    return Contrast(sets[features], st.contrast(values, weights))


def _left_out(
    sets: Mapping[frozenset[str], str], values: Mapping[str, st.Values], factors: list[str]
) -> tuple[Contrast, ...]:
    """Return the effect of each feature when all others are on (leave-one-out designs)."""
    every = frozenset(factors)
    if len(every) < 3 or every not in sets:
        return ()
    without = [(f, sets[every - {f}]) for f in factors if every - {f} in sets]
    return corrected([Contrast(f, st.contrast(values, {sets[every]: 1.0, name: -1.0})) for f, name in without])
