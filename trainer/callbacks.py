"""What a run leaves in its folder while it trains: one class per file, each called at the Trainer's events.

guard, everywhere: called before something is written; raises where this attempt has lost the run to another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from trainer import checkpoint, runlog
from trainer.console import say, warn
from trainer.loop import Trainer, step_seed
from trainer.memory import largest_part
from trainer.signals import StopSignals

HEARTBEAT_SECONDS = 30.0
SAMPLE_TOKENS = 64
SAMPLE_TOP_K = 40
SAMPLE_HEADER = "=== iter "
Guard = Callable[[], None]


class LossRows:
    """`on_row`: the row goes to loss.csv and to the terminal."""

    def __init__(self, log: runlog.LossLog) -> None:
        self.log = log

    def __call__(self, trainer: Trainer) -> None:
        row = trainer.row
        self.log.write(row)
        val = f"  val_loss {row['val_loss']:.4f}" if row["val_loss"] is not None else ""
        say(
            f"iter {row['iter']}/{trainer.config.trainer.max_iters}  loss {row['loss']:.4f}{val}  "
            f"lr {row['lr']:.2e}  grad_norm {row['grad_norm']:.3f}  {row['dt'] * 1000:.1f} ms/step"
        )


class Checkpoints:
    """`on_checkpoint`: the state goes to checkpoint-<step>.pt."""

    def __init__(self, run_dir: Path, log: runlog.LossLog, guard: Guard) -> None:
        self.run_dir, self.log, self.guard = run_dir, log, guard

    def __call__(self, trainer: Trainer) -> None:
        self.guard()
        self.log.sync()
        path = checkpoint.save(self.run_dir, trainer.state(), self.guard)
        runlog.append_event(self.run_dir, "checkpoint", iter=trainer.iter, file=path.name)


class OutOfMemory:
    """`on_out_of_memory`: the smaller parts are said in the log and in events.jsonl."""

    def __init__(self, run_dir: Path, guard: Guard) -> None:
        self.run_dir, self.guard = run_dir, guard

    def __call__(self, trainer: Trainer) -> None:
        self.guard()
        size = largest_part(trainer.windows, trainer.parts)
        warn(
            f"out of memory in step {trainer.iter + 1}: batches are worked through {size} "
            f"window{'s' * (size > 1)} at a time from here on, with the same mean gradient"
        )
        fields = {"iter": trainer.iter, "micro_batch": size, "parts": trainer.parts}
        runlog.append_event(self.run_dir, "out_of_memory", **fields)


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
            runlog.append_event(self.run_dir, "heartbeat", iter=trainer.iter)


class SignalWatch:
    """`on_batch_end` and `on_train_start`: a signal that came ends the run at this step boundary."""

    def __init__(self, run_dir: Path, signals: StopSignals, guard: Guard) -> None:
        self.run_dir, self.signals, self.guard = run_dir, signals, guard

    def __call__(self, trainer: Trainer) -> None:
        if self.signals.received is not None and not trainer.stop_requested:
            trainer.stop_requested = True
            self.guard()
            runlog.append_event(self.run_dir, "signal", signal=self.signals.name, iter=trainer.iter)


class Samples:
    """`on_batch_end`: every sample_interval steps, a continuation of sample_prompt goes to samples.txt.

    Drawn from a generator of its own: training goes on as if nothing had been sampled.
    """

    def __init__(self, run_dir: Path, cache_dir: Path, step: int, guard: Guard) -> None:
        self.path = run_dir / runlog.SAMPLES
        self.cache_dir, self.guard = cache_dir, guard
        self._drop_after(step)

    def __call__(self, trainer: Trainer) -> None:
        settings = trainer.config.trainer
        if trainer.iter % settings.sample_interval == 0:
            with trainer.paused():
                text = self._sample(trainer, settings.sample_prompt)
                block = f"{SAMPLE_HEADER}{trainer.iter}\n{text}\n"
                runlog.atomic_write(self.path, runlog.kept_text(self.path) + block, guard=self.guard)

    def _sample(self, trainer: Trainer, prompt: str) -> str:
        from trainer import tokenizer  # transformers takes a second to import

        codec = tokenizer.load(trainer.config.data.tokenizer, self.cache_dir)
        idx = torch.tensor([codec.encode(prompt) or [0]], device=trainer.device)
        generator = torch.Generator(trainer.device).manual_seed(step_seed(trainer.config.system.seed, trainer.iter))
        out = trainer.model.generate(
            idx, SAMPLE_TOKENS, do_sample=True, top_k=SAMPLE_TOP_K, generator=generator
        )  # (1, T + SAMPLE_TOKENS)
        return str(codec.decode(out[0].tolist()))

    def _drop_after(self, step: int) -> None:
        """Samples of steps that are about to be repeated would stand there twice."""
        text = runlog.kept_text(self.path)
        kept = []
        for line in text.splitlines(keepends=True):
            number = line.removeprefix(SAMPLE_HEADER).strip()
            if line.startswith(SAMPLE_HEADER) and number.isdigit() and int(number) > step:
                break
            kept.append(line)
        if "".join(kept) != text:
            runlog.atomic_write(self.path, "".join(kept), guard=self.guard)
