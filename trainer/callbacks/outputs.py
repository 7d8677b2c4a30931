"""Callbacks that write the files in a run's folder during training, and read users' requests from it.

Each calls `attempt.require()` before it writes, which raises once another attempt owns the run. The order matters: rows
are in every log, and best.pt is up to date, before the checkpoint from which a resumed run continues after them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.trainer import checkpoint
from ablatrix.trainer.callbacks.base import Callback
from ablatrix.trainer.config.optimization import branch_step
from ablatrix.trainer.device import peak_memory
from ablatrix.trainer.generation import continue_text
from ablatrix.trainer.loop import Trainer, step_seed
from ablatrix.trainer.out_of_memory import largest_part
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.events import STOP_FILE, append_event
from ablatrix.trainer.rundir.files import atomic_write, read_text_strict
from ablatrix.trainer.rundir.text_request import Request

if TYPE_CHECKING:
    from ablatrix.trainer.rundir.attempts import Attempt
    from ablatrix.trainer.rundir.loss_csv import LineLog, LossLog, MetricsLog
    from ablatrix.trainer.signals import StopSignals

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 30.0
POLL_SECONDS = 1.0  # between checks for a user's request
SAMPLE_HEADER = "=== iter "


class SignalWatch(Callback):
    """End the run at the next step boundary after a signal."""

    priority = 110

    def __init__(self, attempt: Attempt, signals: StopSignals) -> None:
        self.attempt, self.signals = attempt, signals

    def on_train_start(self, trainer: Trainer) -> None:
        self.on_batch_end(trainer)

    def on_batch_end(self, trainer: Trainer) -> None:
        if self.signals.received is not None and not trainer.stop_requested:
            trainer.stop_requested, trainer.stopped_by = True, self.signals.name
            self.attempt.require()
            append_event(self.attempt.run_dir, "signal", signal=self.signals.name, iter=trainer.iter)


class LossRows(Callback):
    """Write each row to loss.csv and to the log."""

    priority = 100

    def __init__(self, log: LossLog) -> None:
        self.log = log

    def on_row(self, trainer: Trainer) -> None:
        row = trainer.row
        self.log.write(row)
        val = f"  val_loss {row['val_loss']:.4f}" if row["val_loss"] is not None else ""
        logger.info(
            f"iter {row['iter']}/{trainer.config.trainer.max_iters}  loss {row['loss']:.4f}{val}  "
            f"lr {row['lr']:.2e}  grad_norm {row['grad_norm']:.3f}  {row['dt'] * 1000:.1f} ms/step"
        )

    def on_train_end(self, trainer: Trainer) -> None:
        if trainer.finished:
            self.log.restore()


class Metrics(Callback):
    """Write each row to metrics.jsonl, with the peak memory so far."""

    priority = 90

    def __init__(self, log: MetricsLog) -> None:
        self.log = log

    def on_row(self, trainer: Trainer) -> None:
        self.log.write({**trainer.row, "peak_memory_bytes": peak_memory(trainer.device)})

    def on_train_end(self, trainer: Trainer) -> None:
        if trainer.finished:
            self.log.restore()


class BestWeights(Callback):
    """Save the weights of the best evaluation so far to best.pt.

    best: lowest NLL up to the step from which the run starts, according to its checkpoint.
    """

    priority = 70

    def __init__(self, attempt: Attempt, best: float) -> None:
        self.attempt, self.path = attempt, attempt.run_dir / run_files.BEST
        self.best = best if self.path.exists() else math.inf  # no file: just enabled, or the file was removed

    def on_row(self, trainer: Trainer) -> None:
        if trainer.val_loss is None:
            return
        weights = trainer.weights()  # at every evaluation, because all processes of a run take part
        if trainer.val_loss < self.best:
            self.best = trainer.val_loss
            checkpoint.save_torch(self.path, weights, self.attempt.require)


class Checkpoints(Callback):
    """Save the state to checkpoint-<step>.pt, after syncing all earlier rows in `logs` to disk."""

    priority = 50

    def __init__(self, attempt: Attempt, logs: Sequence[LineLog]) -> None:
        self.attempt, self.logs = attempt, logs

    def on_checkpoint(self, trainer: Trainer) -> None:
        self.attempt.require()
        for log in self.logs:
            log.sync()
        settings, run_dir = trainer.config.trainer, self.attempt.run_dir
        path = checkpoint.save(
            run_dir, trainer.state(), self.attempt.require, settings.save_total_limit, branch_step(settings)
        )
        fields = {"iter": trainer.iter, "file": path.name, "peak_memory_bytes": peak_memory(trainer.device)}
        append_event(run_dir, "checkpoint", **fields)


class Requests(Callback):
    """Handle a file `save` or `stop` that a user creates in the run folder: write a checkpoint at the next step
    boundary and, with `stop`, also end the run, as after a signal.

    Checks for the files once a second, and removes a file after the checkpoint that it requested.
    """

    priority = 40

    def __init__(self, attempt: Attempt, seconds: float = POLL_SECONDS) -> None:
        self.stop, self.save = (attempt.run_dir / name for name in (run_files.STOP_REQUEST, run_files.SAVE_REQUEST))
        self.attempt, self.seconds = attempt, seconds
        self.last = -seconds
        self.seen: set[Path] = set()

    def on_batch_end(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if now - self.last < self.seconds:
            return
        self.last = now
        self.seen |= {path for path in (self.stop, self.save) if path.exists()}
        if self.save in self.seen:
            trainer.save_requested = True
        if self.stop in self.seen and not trainer.stop_requested:
            trainer.stop_requested, trainer.stopped_by = True, STOP_FILE

    def on_checkpoint(self, trainer: Trainer) -> None:
        for path in self.seen:
            self.attempt.require()
            path.unlink(missing_ok=True)
        if self.save in self.seen:
            logger.info(f"checkpoint after iter {trainer.iter}, requested by the file {run_files.SAVE_REQUEST}")
        self.seen.clear()


class Heartbeat(Callback):
    """Write a heartbeat to events.jsonl at most every `seconds`."""

    def __init__(self, attempt: Attempt, seconds: float = HEARTBEAT_SECONDS) -> None:
        self.attempt, self.seconds = attempt, seconds
        self.last = time.monotonic()

    def on_batch_end(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if now - self.last >= self.seconds:
            self.last = now
            self.attempt.require()
            memory = peak_memory(trainer.device)
            append_event(self.attempt.run_dir, "heartbeat", iter=trainer.iter, peak_memory_bytes=memory)


class OutOfMemory(Callback):
    """Report in the log and in events.jsonl when batches are split into smaller parts."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt

    def on_out_of_memory(self, trainer: Trainer) -> None:
        self.attempt.require()
        size = largest_part(trainer.windows, trainer.parts)
        logger.warning(
            f"out of memory in step {trainer.iter + 1}: from now on each batch is processed in micro-batches of "
            f"{count(size, 'window')}; the mean gradient is unchanged"
        )
        fields = {"iter": trainer.iter, "micro_batch": size, "parts": trainer.parts}
        append_event(self.attempt.run_dir, "out_of_memory", **fields)


class Samples(Callback):
    """Write a continuation of each sample_prompt to samples.txt, before the first step and every sample_interval steps.

    Each is drawn from its own generator, so that sampling affects neither training nor the other prompts' samples.
    """

    def __init__(self, attempt: Attempt, trainer: Trainer) -> None:
        self.attempt, self.path = attempt, attempt.run_dir / run_files.SAMPLES
        self._drop_after(trainer.iter)

    def on_train_start(self, trainer: Trainer) -> None:
        if trainer.iter == 0 and not read_text_strict(self.path):
            self._write(trainer)

    def on_batch_end(self, trainer: Trainer) -> None:
        if trainer.iter % trainer.config.trainer.sample_interval == 0:
            with trainer.paused():
                self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        prompts = trainer.config.trainer.sample_prompt
        texts = [self._sample(trainer, prompt) for prompt in prompts]
        if len(texts) > 1:
            texts = [f"--- {prompt!r}\n{text}" for prompt, text in zip(prompts, texts, strict=True)]
        block = "\n".join([f"{SAMPLE_HEADER}{trainer.iter}", *texts, ""])
        atomic_write(self.path, read_text_strict(self.path) + block, guard=self.attempt.require)

    def _sample(self, trainer: Trainer, prompt: str) -> str:
        config = trainer.config
        request = Request(prompt, seed=step_seed(config.system.seed, trainer.iter))
        return continue_text(trainer.model, config.data, Path(config.system.cache_dir), request)

    def _drop_after(self, step: int) -> None:
        """Drop the samples of steps that will be repeated."""
        text = read_text_strict(self.path)
        kept = []
        for line in text.splitlines(keepends=True):
            number = line.removeprefix(SAMPLE_HEADER).strip()
            if line.startswith(SAMPLE_HEADER) and number.isdigit() and int(number) > step:
                break
            kept.append(line)
        if "".join(kept) != text:
            atomic_write(self.path, "".join(kept), guard=self.attempt.require)
