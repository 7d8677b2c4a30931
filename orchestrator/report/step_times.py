"""Time as a property of a cell: the cost of its steps relative to the baseline's, from undisturbed steps.

A run's own clock includes whatever else its machine did. Each cell therefore has one ratio, the median over its runs of
seconds per step (lower quartile within a run) divided by the baseline's, and every statement on time is based on it.
Cells that compute what the baseline computes must have a ratio of 1; if they do not, or if a cell's runs disagree,
nothing about time is shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import changes

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.collect import RunRecord

OFF = 0.05  # tolerance of a ratio that must be 1
SPREAD = 0.10  # tolerance of seconds per step within a cell

# Settings, by the last part of their key, that change numbers but no operation; last three lines: other trainers'
FREE = {
    *(name for name, kind in changes.TRAINER.items() if kind in ("schedule", "learning rate")),
    *("weight_decay", "betas", "beta2_decay", "update_clip"),
    *("lr", "peak_lr", "max_lr", "min_lr", "min_learning_rate", "warmup", "warmup_iters", "warmup_ratio"),
    *("lr_schedule", "scheduler", "lr_scheduler_type", "decay_iters", "lr_decay_iters"),
    *("beta1", "beta2", "adam_beta1", "adam_beta2"),
}

Place = Callable[["RunRecord"], Hashable]


@dataclass(frozen=True)
class StepTimes:
    """How fast the cells are. withheld: why times are not shown, '' if they are.

    seconds: cell -> seconds per step on the baseline's hardware; ratios: the same divided by the baseline's; controls:
    cells that compute what the baseline computes -> measured ratio, while `ratios` has 1 for them; apart: cells without
    a run on hardware that the baseline ran on.
    """

    withheld: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)
    controls: Mapping[str, float] = field(default_factory=dict)
    apart: tuple[str, ...] = ()

    def of(self, cell: str) -> float | None:
        """Return a cell's seconds per step, None if withheld or unknown."""
        return None if self.withheld else self.seconds.get(cell)

    def ratio(self, cell: str) -> float | None:
        """Return a cell's seconds per step divided by the baseline's, None if withheld or unknown."""
        return None if self.withheld else self.ratios.get(cell)


def measure(cells: Mapping[str, Sequence[RunRecord]], reference: str) -> StepTimes:
    """Return the step times of a study's cells. reference: its baseline."""
    timed = {name: [r for r in runs if r.usable and r.step_seconds] for name, runs in cells.items()}
    base = timed[reference]
    if not base:
        return StepTimes("Time is not compared: seconds per step of the baseline are not known.")
    places = [(place, _group(base, place)) for place in (_host, _hardware)]
    found = {name: [ratio for run in runs if (ratio := _ratio(run, places))] for name, runs in timed.items()}
    ratios = {name: median(each) for name, each in found.items() if each} | {reference: 1.0}
    usual = median(run.step_seconds for run in base if run.step_seconds)
    same = [name for name in ratios if name != reference and _same_work(cells[name][0], cells[reference][0])]
    controls = {name: ratios[name] for name in same}
    ratios |= dict.fromkeys(controls, 1.0)
    return StepTimes(
        _doubt(timed, controls),
        {name: usual * ratio for name, ratio in ratios.items()},
        ratios,
        controls,
        tuple(name for name, runs in timed.items() if runs and name not in ratios),
    )


def _group(runs: Iterable[RunRecord], place: Place) -> dict[Hashable, list[RunRecord]]:
    groups: dict[Hashable, list[RunRecord]] = defaultdict(list)
    for run in runs:
        groups[place(run)].append(run)
    return groups


def _ratio(run: RunRecord, places: Sequence[tuple[Place, Mapping[Hashable, list[RunRecord]]]]) -> float | None:
    """Return a run's seconds per step divided by those of the most similar baseline run.

    That run is on the same host, else on the same hardware, and has the same seed; if none has, the mean of all runs
    there is used. Seeds are queued one after another, so runs of one seed saw the same state of the machine. places:
    the baseline's runs by host and by hardware.
    """
    for place, base in places:
        here = base.get(place(run), [])
        paired = [other for other in here if other.seed == run.seed] or here
        if paired:
            return (run.step_seconds or 0.0) / fmean(other.step_seconds or 0.0 for other in paired)
    return None


def _host(run: RunRecord) -> Hashable:
    return (str(run.timing.get("host", "")), _hardware(run))


def _hardware(run: RunRecord) -> Hashable:
    processes = run.number("processes")
    return (str(run.timing.get("hardware", "")), str(run.summary.get("device", "")), processes)


def _same_work(run: RunRecord, base: RunRecord) -> bool:
    """True if the two runs differ only in settings that change no operation."""
    keys = set(run.overrides) | set(base.overrides)
    changed = {key for key in keys if run.overrides.get(key) != base.overrides.get(key)}
    return all(not key.startswith("model.") and key.rpartition(".")[2] in FREE for key in changed)


def _doubt(timed: Mapping[str, Sequence[RunRecord]], controls: Mapping[str, float]) -> str:
    """Return why the step times cannot be trusted, '' if they can."""
    off = max(controls, key=lambda name: abs(controls[name] - 1), default="")
    if off and abs(controls[off] - 1) > OFF:
        return (
            f"Time is not compared: {off} computes what the baseline computes, but its steps took "
            f"{controls[off]:.2f} times as long, so the load on the machine differed between runs."
        )
    spreads = {name: spread for name, runs in timed.items() if (spread := _spread(runs)) is not None}
    widest = max(spreads, key=lambda name: spreads[name], default="")
    if widest and spreads[widest] > SPREAD:
        return (
            f"Time is not compared: seconds per step differ by {spreads[widest]:.0%} between runs of {widest}, so "
            "the load on the machine differed between runs."
        )
    if not spreads and not controls:
        return (
            "Time is not compared: no cell ran twice on the same hardware, and none computes what the baseline "
            "computes, so it is unknown whether the load on the machine differed between runs."
        )
    return ""


def _spread(runs: Sequence[RunRecord]) -> float | None:
    """Return the largest seconds per step over the smallest, minus 1, of runs in one place; None without two such runs.

    A place is a host, or identical hardware if every run had its own host.
    """
    for place in (_host, _hardware):
        groups = [[run.step_seconds or 0.0 for run in group] for group in _group(runs, place).values()]
        found = [max(group) / min(group) - 1 for group in groups if len(group) > 1]
        if found:
            return max(found)
    return None
