"""Best-effort loggers: TensorBoard and Weights & Biases. Training continues if they are missing or fail.

Their packages are optional, and are imported when training starts, only if the logger is enabled.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ablatrix.trainer.callbacks.base import Callback
from ablatrix.trainer.device import peak_memory
from ablatrix.trainer.out_of_memory import first_line
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.files import atomic_write, make_folder
from ablatrix.trainer.rundir.program import pip_install
from ablatrix.trainer.signals import SIGNALS

if TYPE_CHECKING:
    from ablatrix.trainer.loop import Trainer
    from ablatrix.trainer.rundir.attempts import Attempt
    from ablatrix.trainer.rundir.loss_csv import Row

logger = logging.getLogger(__name__)


class BestEffortLogger(Callback):
    """A logger that is disabled by its first error, with a warning.

    rows: the rows of loss.csv before this attempt. A superseded attempt raises here, too, instead of writing.
    """

    priority = 60
    name = ""

    def __init__(self, attempt: Attempt, rows: Sequence[Row]) -> None:
        self.run_dir, self.guard, self.rows = attempt.run_dir, attempt.require, rows
        self.disabled = False

    def call(self, hook: str, trainer: Trainer) -> None:
        if self.disabled or getattr(type(self), hook) is getattr(Callback, hook):
            return
        if hook != "close":  # at `close` the run's end is already on record, and must not change
            self.guard()
        try:
            super().call(hook, trainer)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (no package may end the training)
            self.disabled = True
            missing = isinstance(error, ModuleNotFoundError) and error.name == self.name
            reason = first_line(error).rstrip(". ")
            what = f"not installed ({pip_install(self.name)})" if missing else f"{type(error).__name__}: {reason}"
            logger.warning(f"callbacks.{self.name}: {what}; training continues without it")


def scalars(row: Row) -> dict[str, float | int]:
    """Return the values of a row that are plotted over the steps."""
    return {name: value for name, value in row.items() if name != "iter" and value is not None}


def measured(trainer: Trainer) -> dict[str, Any]:
    """Return the trainer's row together with the peak memory so far."""
    return {**trainer.row, "peak_memory_bytes": peak_memory(trainer.device)}


class TensorBoard(BestEffortLogger):
    """Write event files to <run>/tensorboard/.

    A resumed run starts a new file, which says from which step on the older files are obsolete (purge_step), so that no
    step is shown twice. Rows from before this logger was enabled are filled in.
    """

    name = "tensorboard"
    writer: Any = None

    def on_train_start(self, trainer: Trainer) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.run_dir / run_files.TENSORBOARD
        make_folder(folder)
        first = not any(folder.glob("events.out.tfevents.*"))
        self.writer = SummaryWriter(str(folder), purge_step=None if first else trainer.iter + 1)
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
        """Flush the rows up to the checkpoint, which a resumed run will not write again."""
        self.writer.flush()

    def close(self, trainer: Trainer) -> None:
        self.writer.close()

    def _add(self, row: Row) -> None:
        for name, value in scalars(row).items():
            self.writer.add_scalar(name, value, row["iter"])


class WandB(BestEffortLogger):
    """Log to a run in Weights & Biases, with its files in <run>/wandb/.

    Offline unless WANDB_MODE says otherwise: compute nodes have no network. A resumed run keeps its id; offline, it
    starts a new folder with all rows, including the earlier ones, so only the newest folder should be synchronized.
    """

    name = "wandb"
    offline = True
    run: Any = None

    def on_train_start(self, trainer: Trainer) -> None:
        self.offline = os.environ.setdefault("WANDB_MODE", "offline") == "offline"
        import wandb

        config = trainer.config
        with keep_signal_handlers():
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

    def close(self, trainer: Trainer) -> None:
        folder = self.run_dir / run_files.WANDB / "latest-run"
        with keep_signal_handlers():
            self.run.finish(0)
        if self.offline and folder.exists():
            logger.info(f"to upload this run to W&B, from a machine with a network: wandb sync {folder}")

    def _log(self, row: Row) -> None:
        self.run.log(scalars(row), step=row["iter"])

    def _id(self, fresh: bool) -> str:
        """Return an id that is unique to this run and shared by all of its attempts."""
        path = self.run_dir / run_files.WANDB / "id"
        known = "" if fresh else run_files.read_text(path).strip()
        if not known:
            known = secrets.token_hex(6)
            make_folder(path.parent)
            atomic_write(path, known + "\n")
        return known


@contextlib.contextmanager
def keep_signal_handlers() -> Iterator[None]:
    """Restore the handlers that end a run with a checkpoint, which a library may have replaced with its own."""
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
