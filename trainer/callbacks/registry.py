"""Which callbacks a run has, and in which order they are called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.trainer.callbacks import outputs
from ablatrix.trainer.callbacks.spikes import Spikes
from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.loop import Trainer
from ablatrix.trainer.rundir import loss_csv
from ablatrix.trainer.rundir.attempts import Attempt
from ablatrix.trainer.signals import StopSignals

if TYPE_CHECKING:
    from ablatrix.trainer.callbacks.custom import Plugin
    from ablatrix.trainer.callbacks.loggers import Dispensable


def plugins(config: RunConfig) -> list[Plugin]:
    """The user's own callbacks. Raises UserError where one cannot be used."""
    if not config.callbacks.custom:
        return []
    from ablatrix.trainer.callbacks.custom import load

    return load(config.callbacks.custom)


@dataclass
class Attached:
    """What is to be ended when the training has ended."""

    logs: list[loss_csv.LineLog]  # of the run's rows
    loggers: list[Dispensable]

    def mend(self) -> None:
        """The logs are complete: put right what somebody else has changed in them."""
        for log in self.logs:
            log.restore()

    def close(self, trainer: Trainer) -> None:
        for logger in self.loggers:
            logger.close(trainer)


def attach(trainer: Trainer, attempt: Attempt, signals: StopSignals, own: Sequence[Plugin] = ()) -> Attached:
    """Have the run's files written while it trains, as long as this attempt owns them.

    The order counts. A row is in every log, and best.pt has its weights, before the checkpoint that would make a
    resumed run go on behind it. own: callbacks of the user's own come last.
    """
    run_dir, guard = attempt.run_dir, attempt.require
    log = loss_csv.LossLog(run_dir, trainer.iter, guard, trainer.row_due, trainer.eval_due)
    logs: list[loss_csv.LineLog] = [log]
    _boundaries(trainer, run_dir, signals, guard)
    trainer.add_callback("on_row", outputs.LossRows(log))
    settings = trainer.config.callbacks
    if settings.jsonl:
        metrics = loss_csv.MetricsLog(run_dir, log.rows(), guard)
        logs.append(metrics)
        trainer.add_callback("on_row", outputs.Metrics(metrics))
    if settings.watch_grad_norm or settings.watch_loss:
        spikes = Spikes(run_dir, log.rows(), guard, settings.watch_grad_norm, settings.watch_loss)
        trainer.add_callback("on_row", spikes)
    if trainer.config.trainer.save_best:
        trainer.add_callback("on_row", outputs.BestWeights(run_dir, trainer.evaluations.best, guard))
    loggers = _loggers(trainer, run_dir, log, guard)
    trainer.add_callback("on_out_of_memory", outputs.OutOfMemory(run_dir, guard))
    trainer.add_callback("on_checkpoint", outputs.Checkpoints(run_dir, logs, guard))
    requests = outputs.Requests(run_dir, guard)
    trainer.add_callback("on_batch_end", requests.on_batch_end)
    trainer.add_callback("on_checkpoint", requests.on_checkpoint)
    for plugin in own:
        plugin.attach(trainer)
    return Attached(logs, loggers)


def _loggers(trainer: Trainer, run_dir: Path, log: loss_csv.LossLog, guard: outputs.Guard) -> list[Dispensable]:
    """Those of other tools that are switched on."""
    settings = trainer.config.callbacks
    names = [name for name, wanted in (("tensorboard", settings.tensorboard), ("wandb", settings.wandb)) if wanted]
    if not names:
        return []
    from ablatrix.trainer.callbacks.loggers import LOGGERS, Dispensable

    loggers = [Dispensable(name, LOGGERS[name](run_dir, log.rows()), guard) for name in names]
    for logger in loggers:
        logger.attach(trainer)
    return loggers


def _boundaries(trainer: Trainer, run_dir: Path, signals: StopSignals, guard: outputs.Guard) -> None:
    """What looks up after every step."""
    watch = outputs.SignalWatch(run_dir, signals, guard)
    trainer.add_callback("on_train_start", watch)
    if trainer.config.trainer.sample_interval:
        samples = outputs.Samples(run_dir, Path(trainer.config.system.cache_dir), trainer.iter, guard)
        trainer.add_callback("on_batch_end", samples)
    trainer.add_callback("on_batch_end", outputs.Heartbeat(run_dir, guard))
    trainer.add_callback("on_batch_end", watch)
