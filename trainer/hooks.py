"""Which callbacks a run has, and in which order they are called."""

from __future__ import annotations

from pathlib import Path

from trainer import callbacks, runlog
from trainer.attempts import Attempt
from trainer.loop import Trainer
from trainer.signals import StopSignals
from trainer.watches import Spikes


def attach(trainer: Trainer, attempt: Attempt, signals: StopSignals) -> list[runlog.StepLog]:
    """Have the run's files written while it trains, as long as this attempt owns them; the logs of its rows.

    The order counts. A row is in every log, and best.pt has its weights, before the checkpoint that would make a
    resumed run go on behind it.
    """
    run_dir, guard = attempt.run_dir, attempt.require
    log = runlog.LossLog(run_dir, trainer.iter, guard)
    logs: list[runlog.StepLog] = [log]
    _boundaries(trainer, run_dir, signals, guard)
    trainer.add_callback("on_row", callbacks.LossRows(log))
    settings = trainer.config.callbacks
    if settings.jsonl:
        metrics = runlog.MetricsLog(run_dir, log.rows(), guard)
        logs.append(metrics)
        trainer.add_callback("on_row", callbacks.Metrics(metrics))
    if settings.watch_grad_norm or settings.watch_loss:
        spikes = Spikes(run_dir, log.rows(), guard, settings.watch_grad_norm, settings.watch_loss)
        trainer.add_callback("on_row", spikes)
    if trainer.config.trainer.save_best:
        trainer.add_callback("on_row", callbacks.BestWeights(run_dir, trainer.evaluations.best, guard))
    trainer.add_callback("on_out_of_memory", callbacks.OutOfMemory(run_dir, guard))
    trainer.add_callback("on_checkpoint", callbacks.Checkpoints(run_dir, logs, guard))
    requests = callbacks.Requests(run_dir, guard)
    trainer.add_callback("on_batch_end", requests.on_batch_end)
    trainer.add_callback("on_checkpoint", requests.on_checkpoint)
    return logs


def _boundaries(trainer: Trainer, run_dir: Path, signals: StopSignals, guard: callbacks.Guard) -> None:
    """What looks up after every step."""
    watch = callbacks.SignalWatch(run_dir, signals, guard)
    trainer.add_callback("on_train_start", watch)
    if trainer.config.trainer.sample_interval:
        samples = callbacks.Samples(run_dir, Path(trainer.config.system.cache_dir), trainer.iter, guard)
        trainer.add_callback("on_batch_end", samples)
    trainer.add_callback("on_batch_end", callbacks.Heartbeat(run_dir, guard))
    trainer.add_callback("on_batch_end", watch)
