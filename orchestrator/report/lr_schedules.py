"""`plan --schedules`: plot the learning-rate schedules of a plan before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.study import run_config
from ablatrix.trainer.config import TrainerConfig, optimization
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.files import atomic_write, make_folder
from ablatrix.trainer.schedules import learning_rate

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.figure_data import Figure
    from ablatrix.orchestrator.study.matrix import Run

PICTURE = "planned_schedules"
MOST = 24  # schedules in the plot
POINTS = 600  # per curve, plus the corners between its phases
QUARTERS = (0.25, 0.5, 0.75)
TOGETHER = 4  # lines in one panel; more would hide each other
FAR_APART = 10  # if the largest peak exceeds the smallest by this factor, rates are drawn relative to their own peak


@dataclass(frozen=True)
class Schedule:
    """One distinct schedule: the cells that follow it, and its learning rate at some steps, first and last included."""

    cells: tuple[str, ...]
    settings: TrainerConfig
    steps: tuple[int, ...]
    rates: tuple[float, ...]

    @property
    def description(self) -> str:
        """The schedule in words: `wsd, peak 0.0005`."""
        return f"{optimization.schedule_name(self.settings)}, peak {max(self.rates):.3g}"


def find_schedules(runs: Sequence[Run]) -> list[Schedule]:
    """Return the distinct schedules of a plan, in plan order. Cells with equal rates at all points share one."""
    found: dict[tuple[tuple[int, ...], tuple[float, ...]], list[tuple[str, TrainerConfig]]] = {}
    for cell, run in {run.cell: run for run in reversed(runs)}.items():
        settings = run_config.require_trainer(run.config).trainer
        steps = sample_steps(settings)
        rates = tuple(learning_rate(step, settings) for step in steps)
        found.setdefault((steps, rates), []).insert(0, (cell, settings))
    made = [
        Schedule(tuple(cell for cell, _ in group), group[0][1], steps, rates) for (steps, rates), group in found.items()
    ]
    order = list(dict.fromkeys(run.cell for run in runs))
    return sorted(made, key=lambda schedule: order.index(schedule.cells[0]))


def sample_steps(settings: TrainerConfig) -> tuple[int, ...]:
    """Return evenly spaced steps and all corners of the schedule."""
    last = settings.max_iters
    wanted = {1, last, *(1 + round(i * (last - 1) / POINTS) for i in range(POINTS))}
    wanted |= {round(part * last) for part in QUARTERS}
    warm = settings.warmup_steps
    ends = (settings.decay_steps, settings.anneal_steps)
    wanted |= {warm, warm + (settings.cooldown_steps or 0), *(last - phase for phase in ends if phase)}
    return tuple(sorted(step for step in wanted if 1 <= step <= last))


def write(found: Sequence[Schedule], folder: Path) -> list[Path]:
    """Draw the schedules into `folder` as PNG and PDF. Raises RunError if the folder cannot be written."""
    from ablatrix.orchestrator.report import drawing

    paths = []
    try:
        make_folder(folder, parents=True)
        drawn = drawing.draw(figure(found[:MOST]), on_page=False, with_pdf=True)
        for kind, content in (("png", drawn.png), ("pdf", drawn.pdf)):
            paths.append(folder / f"{PICTURE}.{kind}")
            atomic_write(paths[-1], content, durable=False)
    except OSError as error:
        raise RunError(f"cannot write the learning rate plot to {folder}: {error.strerror}") from None
    return paths


def figure(found: Sequence[Schedule]) -> Figure:
    """Return the schedules as one panel with a legend, or, if there are many, as one panel each on equal axes."""
    import numpy as np

    from ablatrix.orchestrator.report.figure_data import Figure, Line, Panel, Series

    peaks = [max(schedule.rates) for schedule in found]
    relative = max(peaks) > FAR_APART * min(peaks)
    together = len(found) <= TOGETHER
    lines = []
    for i, schedule in enumerate(found):
        rates = np.array(schedule.rates) / (peaks[i] if relative else 1.0)
        name = f"{join_names(schedule.cells, 40)}: {schedule.description}"
        lines.append(Line(name, i if together else 1, Series(np.array(schedule.steps, dtype=float), rates)))
    label = "learning rate / peak" if relative else "learning rate"
    x_range = (0.0, float(max(schedule.steps[-1] for schedule in found)))
    y_range = (0.0, 1.06 * max(float(line.series.y.max()) for line in lines))
    if together:
        panel = Panel("", "optimizer step", label, tuple(lines), x_range, y_range)
        return Figure(PICTURE, "Learning rate", "", (panel,), legend=tuple((line.label, line.style) for line in lines))
    panels = [
        Panel(f"{join_names(s.cells, 25)}\n{s.description}", "optimizer step", label, (line,), x_range, y_range)
        for s, line in zip(found, lines, strict=True)
    ]
    return Figure(PICTURE, "Learning rate", "", tuple(panels))


def join_names(names: Sequence[str], most: int) -> str:
    """Return as many names as fit into `most` characters: `baseline, rope + 3 more`."""
    from ablatrix.orchestrator.report.formatting import short

    for count in range(len(names), 1, -1):
        left = len(names) - count
        text = ", ".join(names[:count]) + (f" + {left} more" if left else "")
        if len(text) <= most:
            return text
    rest = f" + {len(names) - 1} more" if len(names) > 1 else ""
    return short(names[0], most - len(rest)) + rest
