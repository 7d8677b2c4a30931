"""What a run leaves in its folder while it trains: one class per file, each called at the Trainer's events.

guard, everywhere: called before something is written; raises where this attempt has lost the run to another one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ablatrix.trainer import checkpoint
from ablatrix.trainer.config.optimization import branch_step
from ablatrix.trainer.loop import Trainer, step_seed
from ablatrix.trainer.out_of_memory import largest_part, peak_memory
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.events import STOP_FILE, append_event
from ablatrix.trainer.rundir.files import atomic_write, read_text_strict
from ablatrix.trainer.signals import StopSignals

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 30.0
LOOK_SECONDS = 1.0  # between looks for a file of a person's
SAMPLE_TOKENS = 64
SAMPLE_TOP_K = 40
SAMPLE_HEADER = "=== iter "
Guard = Callable[[], None]


class LossRows:
    """`on_row`: the row goes to loss.csv and to the terminal."""

    def __init__(self, log: loss_csv.LossLog) -> None:
        self.log = log

    def __call__(self, trainer: Trainer) -> None:
        row = trainer.row
        self.log.write(row)
        val = f"  val_loss {row['val_loss']:.4f}" if row["val_loss"] is not None else ""
        logger.info(
            f"iter {row['iter']}/{trainer.config.trainer.max_iters}  loss {row['loss']:.4f}{val}  "
            f"lr {row['lr']:.2e}  grad_norm {row['grad_norm']:.3f}  {row['dt'] * 1000:.1f} ms/step"
        )


class Metrics:
    """`on_row`: the row goes to metrics.jsonl, with the memory that the run has needed so far."""

    def __init__(self, log: loss_csv.MetricsLog) -> None:
        self.log = log

    def __call__(self, trainer: Trainer) -> None:
        self.log.write({**trainer.row, "peak_memory_bytes": peak_memory(trainer.device)})


class Checkpoints:
    """`on_checkpoint`: the state goes to checkpoint-<step>.pt, after all rows up to it are safe in `logs`."""

    def __init__(self, run_dir: Path, logs: Sequence[loss_csv.LineLog], guard: Guard) -> None:
        self.run_dir, self.logs, self.guard = run_dir, logs, guard

    def __call__(self, trainer: Trainer) -> None:
        self.guard()
        for log in self.logs:
            log.sync()
        settings = trainer.config.trainer
        path = checkpoint.save(
            self.run_dir, trainer.state(), self.guard, settings.save_total_limit, branch_step(settings)
        )
        fields = {"iter": trainer.iter, "file": path.name, "peak_memory_bytes": peak_memory(trainer.device)}
        append_event(self.run_dir, "checkpoint", **fields)


class BestWeights:
    """`on_row`: the weights of the best evaluation so far go to best.pt.

    Before any checkpoint that knows of that evaluation: a resumed run finds them there, or does the evaluation again.
    best: least NLL up to the step that the run starts from, as its checkpoint tells.
    """

    def __init__(self, run_dir: Path, best: float, guard: Guard) -> None:
        self.path, self.guard = run_dir / run_files.BEST, guard
        self.best = best if self.path.exists() else math.inf  # else: wanted only since now, or removed

    def __call__(self, trainer: Trainer) -> None:
        if trainer.val_loss is None:
            return
        weights = trainer.weights()  # for every evaluation: other processes of the run cannot know what is there
        if trainer.val_loss < self.best:
            self.best = trainer.val_loss
            checkpoint.save_torch(self.path, weights, self.guard)


class OutOfMemory:
    """`on_out_of_memory`: the smaller parts are said in the log and in events.jsonl."""

    def __init__(self, run_dir: Path, guard: Guard) -> None:
        self.run_dir, self.guard = run_dir, guard

    def __call__(self, trainer: Trainer) -> None:
        self.guard()
        size = largest_part(trainer.windows, trainer.parts)
        logger.warning(
            f"out of memory in step {trainer.iter + 1}: batches are worked through {size} "
            f"window{'s' * (size > 1)} at a time from here on, with the same mean gradient"
        )
        fields = {"iter": trainer.iter, "micro_batch": size, "parts": trainer.parts}
        append_event(self.run_dir, "out_of_memory", **fields)


class Heartbeat:
    """`on_batch_end`: a sign of life in events.jsonl, at most every `seconds`."""

    def __init__(self, run_dir: Path, guard: Guard, seconds: float = HEARTBEAT_SECONDS) -> None:
        self.run_dir, self.guard, self.seconds = run_dir, guard, seconds
        self.last = time.monotonic()

    def __call__(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if now - self.last >= self.seconds:
            self.last = now
            self.guard()
            memory = peak_memory(trainer.device)
            append_event(self.run_dir, "heartbeat", iter=trainer.iter, peak_memory_bytes=memory)


class SignalWatch:
    """`on_batch_end` and `on_train_start`: a signal that came ends the run at this step boundary."""

    def __init__(self, run_dir: Path, signals: StopSignals, guard: Guard) -> None:
        self.run_dir, self.signals, self.guard = run_dir, signals, guard

    def __call__(self, trainer: Trainer) -> None:
        if self.signals.received is not None and not trainer.stop_requested:
            trainer.stop_requested, trainer.stopped_by = True, self.signals.name
            self.guard()
            append_event(self.run_dir, "signal", signal=self.signals.name, iter=trainer.iter)


class Requests:
    """A file `save` or `stop` that somebody makes in the run folder: a checkpoint at this step boundary; with `stop`
    also the end, as after a signal.

    `on_batch_end` looks for one of them, in turns, once a second. `on_checkpoint`, after the checkpoint, takes away
    what it has fulfilled.
    """

    def __init__(self, run_dir: Path, guard: Guard, seconds: float = LOOK_SECONDS) -> None:
        self.names = [os.fspath(run_dir / name) for name in (run_files.STOP_REQUEST, run_files.SAVE_REQUEST)]
        self.guard, self.seconds = guard, seconds
        self.last = -seconds
        self.looks = 0
        self.seen: set[str] = set()

    def on_batch_end(self, trainer: Trainer) -> None:
        now = time.monotonic()
        if now - self.last < self.seconds:
            return
        self.last = now
        name = self.names[self.looks % 2]
        self.looks += 1
        if not os.path.exists(name):
            return
        self.seen.add(name)
        if name == self.names[1]:
            trainer.save_requested = True
        elif not trainer.stop_requested:
            trainer.stop_requested, trainer.stopped_by = True, STOP_FILE

    def on_checkpoint(self, trainer: Trainer) -> None:
        for name in self.seen:
            self.guard()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        if self.names[1] in self.seen:
            logger.info(f"checkpoint after iter {trainer.iter}, as the file {run_files.SAVE_REQUEST} asked for")
        self.seen.clear()


class Samples:
    """`on_batch_end`: every sample_interval steps, a continuation of each sample_prompt goes to samples.txt.

    Drawn from a generator of its own: training goes on as if nothing had been sampled, and a prompt's continuation does
    not depend on the other prompts.
    """

    def __init__(self, run_dir: Path, cache_dir: Path, step: int, guard: Guard) -> None:
        self.path = run_dir / run_files.SAMPLES
        self.cache_dir, self.guard = cache_dir, guard
        self._drop_after(step)

    def __call__(self, trainer: Trainer) -> None:
        settings = trainer.config.trainer
        if trainer.iter % settings.sample_interval == 0:
            with trainer.paused():
                texts = [self._sample(trainer, prompt) for prompt in settings.sample_prompt]
                if len(texts) > 1:
                    texts = [f"--- {p!r}\n{text}" for p, text in zip(settings.sample_prompt, texts, strict=True)]
                block = "\n".join([f"{SAMPLE_HEADER}{trainer.iter}", *texts, ""])
                atomic_write(self.path, read_text_strict(self.path) + block, guard=self.guard)

    def _sample(self, trainer: Trainer, prompt: str) -> str:
        from ablatrix.trainer.data import tokenizer  # transformers takes a second to import

        codec = tokenizer.load(trainer.config.data.tokenizer, self.cache_dir)
        idx = torch.tensor([codec.encode(prompt) or [0]], device=trainer.device)
        generator = torch.Generator(trainer.device).manual_seed(step_seed(trainer.config.system.seed, trainer.iter))
        out = trainer.model.generate(
            idx, SAMPLE_TOKENS, do_sample=True, top_k=SAMPLE_TOP_K, generator=generator
        )  # (1, T + SAMPLE_TOKENS)
        return str(codec.decode(out[0].tolist()))

    def _drop_after(self, step: int) -> None:
        """Samples of steps that are about to be repeated would stand there twice."""
        text = read_text_strict(self.path)
        kept = []
        for line in text.splitlines(keepends=True):
            number = line.removeprefix(SAMPLE_HEADER).strip()
            if line.startswith(SAMPLE_HEADER) and number.isdigit() and int(number) > step:
                break
            kept.append(line)
        if "".join(kept) != text:
            atomic_write(self.path, "".join(kept), guard=self.guard)
