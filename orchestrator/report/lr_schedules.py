"""The verb `plan --schedules`: the learning rate over the steps, before anything runs. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ablatrix.orchestrator.study import run_config
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.trainer.config import TrainerConfig, optimization
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.safe_open import make_folder
from ablatrix.trainer.schedules import learning_rate

PICTURE = "planned_schedules"
MOST = 24  # schedules in the picture
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


def show(runs: Sequence[Run], folder: Path, console: Console) -> None:
    """The table, and where the picture is. Raises RunError where that cannot be written."""
    found = curves(runs)
    console.print(table(found))
    for path in write(found, folder):
        console.print(str(path))
    if len(found) > MOST:
        console.print(f"drawn are the first {MOST} of {len(found)} schedules")


def curves(runs: Sequence[Run]) -> list[Curve]:
    """The distinct schedules of a plan, in its order. Cells whose rates are the same at all points share one."""
    found: dict[tuple[tuple[int, ...], tuple[float, ...]], list[Run]] = {}
    for run in {run.cell: run for run in reversed(runs)}.values():
        settings = run_config.ours(run.config).trainer
        steps = points(settings)
        rates = tuple(learning_rate(step, settings) for step in steps)
        found.setdefault((steps, rates), []).insert(0, run)
    made = [
        Curve(tuple(run.cell for run in group), run_config.ours(group[0].config).trainer, steps, rates)
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


def table(found: Sequence[Curve]) -> Table:
    """A row a schedule: its cells, its highest rate, and its rate along the run."""
    made = Table(title=Text("Learning rate (equal schedules once)"), title_justify="left")
    for name in ("cells", "schedule"):
        made.add_column(name)
    for name in ("steps", "warm-up", "peak", "step 1", *(f"{part:.0%}" for part in QUARTERS), "last"):
        made.add_column(name, justify="right")
    for curve in found:
        settings = curve.settings
        along = (1, *(max(1, round(part * settings.max_iters)) for part in QUARTERS), settings.max_iters)
        made.add_row(
            Text(", ".join(curve.cells)),
            curve.name,
            f"{settings.max_iters:,}",
            f"{settings.warmup_steps:,}",
            *(f"{rate:.3g}" for rate in (max(curve.rates), *(learning_rate(step, settings) for step in along))),
        )
    return made


def write(found: Sequence[Curve], folder: Path) -> list[Path]:
    """Draw the schedules into `folder` as PNG and PDF. Raises RunError where it cannot be written."""
    from ablatrix.orchestrator.report import lr_figures

    paths = []
    try:
        make_folder(folder, parents=True)
        for kind, content in lr_figures.draw(found[:MOST]).items():
            paths.append(folder / f"{PICTURE}.{kind}")
            run_files.atomic_write(paths[-1], content, durable=False)
    except OSError as error:
        raise RunError(f"{folder}: the schedules cannot be drawn there: {error.strerror}") from None
    return paths
