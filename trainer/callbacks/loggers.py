"""Logs for other tools: TensorBoard and Weights & Biases. Training goes on where they are missing or break.

Their packages are not among the requirements, and are imported when training starts and only where they are asked for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.trainer.out_of_memory import first_line, peak_memory
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.files import atomic_write, make_folder
from ablatrix.trainer.rundir.program import pip_install
from ablatrix.trainer.signals import SIGNALS

if TYPE_CHECKING:
    from ablatrix.trainer.callbacks.outputs import Guard
    from ablatrix.trainer.loop import Trainer

logger = logging.getLogger(__name__)

EVENTS = ("on_train_start", "on_row", "on_checkpoint")


class Dispensable:
    """A logger that the run can do without: the first thing that goes wrong in it is one warning, and its end.

    guard: an attempt that has lost the run to another one writes no more here either; that ends it.
    """

    def __init__(self, name: str, logger: TensorBoard | WandB, guard: Guard) -> None:
        self.name, self.guard = name, guard
        self.logger: TensorBoard | WandB | None = logger

    def attach(self, trainer: Trainer) -> None:
        for event in EVENTS:
            trainer.add_callback(event, partial(self._call, event))

    def close(self, trainer: Trainer) -> None:
        """Once the run's own end is on record: this may take its time, or never come back."""
        self._call("close", trainer)

    def _call(self, event: str, trainer: Trainer) -> None:
        if self.logger is None:
            return
        if event != "close":  # by then the run's end is on record, and nothing may make another one of it
            self.guard()
        try:
            getattr(self.logger, event)(trainer)
        except (Exception, SystemExit) as error:  # whatever another program makes of a bad day
            self.logger = None
            missing = isinstance(error, ModuleNotFoundError) and error.name == self.name
            what = f"not installed ({pip_install(self.name)})" if missing else f"{type(error).__name__}: {_told(error)}"
            logger.warning(f"callbacks.{self.name}: {what}; training goes on without it")


def _told(error: BaseException) -> str:
    return first_line(error).rstrip(". ")


def scalars(row: loss_csv.Row) -> dict[str, float | int]:
    """What of a row is drawn over the steps."""
    return {name: value for name, value in row.items() if name != "iter" and value is not None}


def measured(trainer: Trainer) -> dict[str, Any]:
    """The trainer's row with the memory that the run has needed so far."""
    return {**trainer.row, "peak_memory_bytes": peak_memory(trainer.device)}


class TensorBoard:
    """Event files in <run>/tensorboard/.

    A resumed run begins a new file there that says from which step on the older ones do not count (purge_step), so that
    no step is shown twice. Rows from before this log was switched on are filled in.
    """

    def __init__(self, run_dir: Path, rows: Sequence[loss_csv.Row]) -> None:
        self.folder, self.rows = run_dir / run_files.TENSORBOARD, rows
        self.writer: Any = None

    def on_train_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        make_folder(self.folder)
        first = not any(self.folder.glob("events.out.tfevents.*"))
        self.writer = SummaryWriter(str(self.folder), purge_step=None if first else trainer.iter + 1)
        if first:
            self.writer.add_text("config", "\n".join(f"    {line}" for line in trainer.config.to_json().splitlines()))
            for title, text in trainer.config.info.model_dump().items():
                if text:
                    self.writer.add_text(f"info/{title}", text)
            for row in self.rows:
                self._add(row)
        self.writer.flush()

    def on_row(self, trainer: Trainer) -> None:
        self._add(measured(trainer))

    def on_checkpoint(self, trainer: Trainer) -> None:
        """Rows that a resumed run does not repeat must be there."""
        self.writer.flush()

    def close(self, trainer: Trainer) -> None:
        self.writer.close()

    def _add(self, row: loss_csv.Row) -> None:
        for name, value in scalars(row).items():
            self.writer.add_scalar(name, value, row["iter"])


class WandB:
    """A run in Weights & Biases, its files in <run>/wandb/.

    Offline unless WANDB_MODE says otherwise: compute nodes have no network. A resumed run has the same id. Offline, it
    begins a new folder that holds all its rows, those from before included: the newest is the one to synchronise.
    """

    def __init__(self, run_dir: Path, rows: Sequence[loss_csv.Row]) -> None:
        self.run_dir, self.rows = run_dir, rows
        self.offline = os.environ.setdefault("WANDB_MODE", "offline") == "offline"
        self.run: Any = None

    def on_train_start(self, trainer: Trainer) -> None:
        import wandb

        config = trainer.config
        with handlers_kept():
            self.run = wandb.init(
                project=config.callbacks.wandb_project,
                id=self._id(fresh=trainer.iter == 0 and config.trainer.resume == "none"),
                resume="allow",
                name=self.run_dir.name,
                group=config.info.name or self.run_dir.resolve().parent.name,
                notes="\n".join(filter(None, (config.info.description, config.info.hypothesis))) or None,
                dir=str(self.run_dir),
                config=config.model_dump(mode="json"),
                settings={"console": "off", "silent": True},
            )
        for row in self.rows if self.offline else ():
            self._log(row)

    def on_row(self, trainer: Trainer) -> None:
        self._log(measured(trainer))

    def on_checkpoint(self, trainer: Trainer) -> None:
        pass

    def close(self, trainer: Trainer) -> None:
        folder = self.run_dir / run_files.WANDB / "latest-run"
        with handlers_kept():
            self.run.finish(0)
        if self.offline and folder.exists():
            logger.info(f"to see this run in W&B, where there is a network: wandb sync {folder}")

    def _log(self, row: loss_csv.Row) -> None:
        self.run.log(scalars(row), step=row["iter"])

    def _id(self, fresh: bool) -> str:
        """The same for every attempt at a run, and no other run's."""
        path = self.run_dir / run_files.WANDB / "id"
        known = "" if fresh else run_files.read_text(path).strip()
        if not known:
            known = secrets.token_hex(6)
            make_folder(path.parent)
            atomic_write(path, known + "\n")
        return known


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """A library may set signal handlers of its own; those that end a run with a checkpoint are set again."""
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


LOGGERS: dict[str, Callable[[Path, Sequence[loss_csv.Row]], TensorBoard | WandB]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
}
