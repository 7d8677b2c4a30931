"""The verb `plan --schedules`: the learning rate over the steps, before anything runs. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ablatrix.orchestrator.report.lr_curves import QUARTERS, Curve, curves
from ablatrix.orchestrator.study.matrix import Run
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.files import atomic_write, make_folder
from ablatrix.trainer.schedules import learning_rate

PICTURE = "planned_schedules"
MOST = 24  # schedules in the picture


def show(runs: Sequence[Run], folder: Path, console: Console) -> None:
    """The table, and where the picture is. Raises RunError where that cannot be written."""
    found = curves(runs)
    console.print(table(found))
    for path in write(found, folder):
        console.print(str(path))
    if len(found) > MOST:
        console.print(f"drawn are the first {MOST} of {len(found)} schedules")


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
            atomic_write(paths[-1], content, durable=False)
    except OSError as error:
        raise RunError(f"{folder}: the schedules cannot be drawn there: {error.strerror}") from None
    return paths
