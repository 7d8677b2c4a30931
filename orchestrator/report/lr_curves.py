"""The learning rate over the steps of each distinct schedule of a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ablatrix.orchestrator.study import run_config
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.trainer.config import TrainerConfig, optimization
from ablatrix.trainer.schedules import learning_rate

POINTS = 600  # of a curve; the corners between its phases are added


QUARTERS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Curve:
    """One distinct schedule: the cells that follow it, and its rate at some steps, first and last among them."""

    cells: tuple[str, ...]
    settings: TrainerConfig
    steps: tuple[int, ...]
    rates: tuple[float, ...]

    @property
    def name(self) -> str:
        """`wsd`, the name of its formula."""
        return optimization.schedule_name(self.settings)


def curves(runs: Sequence[Run]) -> list[Curve]:
    """The distinct schedules of a plan, in its order. Cells whose rates are the same at all points share one."""
    found: dict[tuple[tuple[int, ...], tuple[float, ...]], list[Run]] = {}
    for run in {run.cell: run for run in reversed(runs)}.values():
        settings = run_config.require_trainer(run.config).trainer
        steps = points(settings)
        rates = tuple(learning_rate(step, settings) for step in steps)
        found.setdefault((steps, rates), []).insert(0, run)
    made = [
        Curve(tuple(run.cell for run in group), run_config.require_trainer(group[0].config).trainer, steps, rates)
        for (steps, rates), group in found.items()
    ]
    order = list(dict.fromkeys(run.cell for run in runs))
    return sorted(made, key=lambda curve: order.index(curve.cells[0]))


def points(settings: TrainerConfig) -> tuple[int, ...]:
    """Steps at which a schedule is looked at: evenly spaced, and all its corners."""
    last = settings.max_iters
    wanted = {1, last, *(1 + round(i * (last - 1) / POINTS) for i in range(POINTS))}
    wanted |= {round(part * last) for part in QUARTERS}
    warm = settings.warmup_steps
    ends = (settings.decay_steps, settings.anneal_steps)
    wanted |= {warm, warm + (settings.cooldown_steps or 0), *(last - phase for phase in ends if phase)}
    return tuple(sorted(step for step in wanted if 1 <= step <= last))
