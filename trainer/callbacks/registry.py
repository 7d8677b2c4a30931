"""Assemble the callbacks of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ablatrix.trainer.callbacks import outputs
from ablatrix.trainer.callbacks.spikes import Spikes
from ablatrix.trainer.rundir.loss_csv import LineLog, LossLog, MetricsLog

if TYPE_CHECKING:
    from ablatrix.trainer.callbacks.base import Callback
    from ablatrix.trainer.config import RunConfig
    from ablatrix.trainer.loop import Trainer
    from ablatrix.trainer.rundir.attempts import Attempt
    from ablatrix.trainer.signals import StopSignals


def load_custom(config: RunConfig) -> Sequence[Callback]:
    """Return the user's callbacks. Raises ConfigError if one cannot be used."""
    if not config.callbacks.custom:
        return ()
    from ablatrix.trainer.callbacks.custom import load

    return load(config.callbacks.custom)


def attach(trainer: Trainer, attempt: Attempt, signals: StopSignals, custom: Sequence[Callback] = ()) -> None:
    """Add the user's callbacks and those that write the run's files for as long as the attempt owns the run."""
    for callback in (*_make(trainer, attempt, signals), *custom):
        trainer.add_callback(callback)


def _make(trainer: Trainer, attempt: Attempt, signals: StopSignals) -> Iterator[Callback]:
    settings = trainer.config.callbacks
    log = LossLog(attempt.run_dir, trainer.iter, attempt.require, trainer.row_due, trainer.eval_due)
    logs: list[LineLog] = [log]
    yield outputs.SignalWatch(attempt, signals)
    yield outputs.Heartbeat(attempt)
    yield outputs.LossRows(log)
    yield outputs.OutOfMemory(attempt)
    yield outputs.Requests(attempt)
    if trainer.config.trainer.sample_interval:
        yield outputs.Samples(attempt, trainer)
    if settings.jsonl:
        metrics = MetricsLog(attempt.run_dir, log.rows(), attempt.require)
        logs.append(metrics)
        yield outputs.Metrics(metrics)
    if settings.watch_grad_norm or settings.watch_loss:
        yield Spikes(attempt, log.rows(), settings.watch_grad_norm, settings.watch_loss)
    if trainer.config.trainer.save_best:
        yield outputs.BestWeights(attempt, trainer.evaluations.best)
    yield outputs.Checkpoints(attempt, logs)
    if settings.tensorboard or settings.wandb:
        from ablatrix.trainer.callbacks import loggers

        if settings.tensorboard:
            yield loggers.TensorBoard(attempt, log.rows())
        if settings.wandb:
            yield loggers.WandB(attempt, log.rows())
