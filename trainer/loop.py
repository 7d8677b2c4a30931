"""The training loop, without files, signals or a command line, which are left to callbacks and callers."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ablatrix.trainer.config.optimization import branch_step
from ablatrix.trainer.cuda_graph import GraphedStep
from ablatrix.trainer.data.sampling import PADDING
from ablatrix.trainer.device import autocast
from ablatrix.trainer.distributed.single import Array, Single, sum_windows
from ablatrix.trainer.early_stopping import Improvement
from ablatrix.trainer.optimizers import make
from ablatrix.trainer.out_of_memory import first_line, give_back, is_out_of_memory, more_parts
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.schedules import learning_rate

if TYPE_CHECKING:
    from ablatrix.trainer.callbacks.base import Callback
    from ablatrix.trainer.config import RunConfig


class Source(Protocol):
    """Yields batches `start` to `stop` - 1 in order, each a pair (x, y) of numpy arrays (B, T)."""

    def __call__(self, start: int, stop: int) -> Iterator[tuple[Array, Array]]: ...


class Trainer:
    """Trains one model; everything that determines the result is in `config`, the batches and `state()`.

    `iter` is the number of completed optimizer steps. Callbacks are called at the events defined in callbacks/base.py.

    strategy: how this process shares the run with others; by default it runs alone. All processes have the same
    batches, rows, evaluations and stops, and call `state()`, `weights()` and `result()` together.
    """

    def __init__(
        self,
        config: RunConfig,
        source: Source,
        heldout: tuple[Array, Array],
        device: torch.device | str = "cpu",
        strategy: Single | None = None,
    ) -> None:
        self.config = config
        self.source = source
        self.heldout = heldout
        self.device = torch.device(device)
        self.strategy = strategy or Single(config, self.device)
        self.model = self.strategy.model
        settings = config.trainer
        self.optimizer = make(self.strategy.trained, settings)
        self.optimizer.across = self.strategy.norm
        self.callbacks: list[Callback] = []  # sorted by priority
        self.stop_requested = False
        self.stopped_by = ""  # what requested the stop, for the log, such as the name of a signal
        self.save_requested = False
        self.diverged = False
        self.evaluations = Improvement(settings.early_stop_patience, settings.early_stop_min_delta)
        self._branch_step = branch_step(settings)
        self.parts = settings.grad_accum  # number of parts of a batch, computed one after the other
        self.row: dict[str, Any] = {}
        self._graph: GraphedStep | None = None
        # On a CPU the hand-written kernels are faster than compiled ones
        if settings.compile and self.device.type == "cuda" and self.strategy.world == 1:
            self.model.compile_parts()
            self._graph = GraphedStep(self._update, self.optimizer, self.device)

        self.iter = 0
        self.seconds = 0.0  # spent training, excluding evaluations, checkpoints and startup
        self.initial_loss = math.nan
        self.final_loss = math.nan
        self.val_loss: float | None = None  # after `iter` steps; None if not evaluated there
        self.window_nll: Array | None = None  # NLL of each held-out window at the last evaluation, (N,) float64
        # Sums since the last row, kept on the device: reading a number back makes the host wait
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        self._sums = torch.zeros(2, dtype=wide, device=self.device)  # loss, grad_norm
        # Number of scored tokens in a batch, as packed blocks have padding; on the device, for steps in a CUDA graph
        packed = config.data.sampling == "packed"
        self._scored = torch.zeros((), device=self.device) if packed else None
        self._row_iter, self._row_seconds = 0, 0.0
        self._before_end: dict[str, Any] = {}  # progress before the last row, for continuing the run with more steps
        self._since = 0.0
        self.inputs: dict[str, str] = {}  # fingerprints of the training inputs, saved in checkpoints

    def add_callback(self, callback: Callback) -> None:
        """Add a callback, to be called after those with higher priority and those of equal priority added before."""
        self.callbacks.append(callback)
        self.callbacks.sort(key=lambda added: -added.priority)

    def trigger(self, hook: str) -> None:
        """Call a hook on all callbacks."""
        for callback in self.callbacks:
            callback.call(hook, self)

    @property
    def finished(self) -> bool:
        return self.diverged or self.stopped_early or self.iter >= self.config.trainer.max_iters

    @property
    def stopped_early(self) -> bool:
        """True if the evaluations stopped improving (early_stop_patience) before the last step."""
        return self.evaluations.exhausted and self.iter < self.config.trainer.max_iters

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self.iter * self.config.trainer.batch_size * self.config.data.block_size

    @property
    def windows(self) -> int:
        """Number of windows per batch that this process computes."""
        return self.config.trainer.batch_size // self.strategy.shares

    def run(self) -> None:
        """Train until max_iters, an early stop, divergence, or a stop request (only then is `finished` False)."""
        self.trigger("on_train_start")
        self._agree()
        self._since = time.perf_counter()
        if not (self.finished or self.stop_requested):
            with contextlib.closing(self.source(self.iter, self.config.trainer.max_iters)) as batches:  # type: ignore[type-var]
                for x, y in batches:
                    self._step(x, y)
                    self.trigger("on_batch_end")
                    self._agree()
                    self._boundary()
                    if self.stop_requested or self.finished:
                        break
        self.trigger("on_train_end")

    def _agree(self) -> None:
        """Stop or save in all processes if any of them requests it."""
        self.stop_requested, self.save_requested = self.strategy.agree(self.stop_requested, self.save_requested)

    def _step(self, x: Array, y: Array) -> None:
        """Do one optimizer step on batch number `iter`."""
        if self._scored is not None:
            self._scored.fill_(int((y != PADDING).sum()))
        x, y = self.strategy.share(x), self.strategy.share(y)
        self.optimizer.set_learning_rate(learning_rate(self.iter + 1, self.config.trainer))
        self._seed()
        step = self._graph or self._update
        self._sums += step(self._to_device(x), self._to_device(y))
        self.iter += 1
        self.val_loss = None

    def _seed(self) -> None:
        """Seed dropout from (seed, step) and the parts alone, so that resuming needs no generator state."""
        self.strategy.seed(step_seed(self.config.system.seed, self.iter))

    def _update(self, x: Tensor, y: Tensor) -> Tensor:
        """Update the weights with one batch; return its loss and the gradient norm, (2,)."""
        loss = self._gradients(x, y)
        return torch.stack((loss, self.optimizer.step()))

    def _gradients(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute the gradients of a batch and return its loss, retrying in smaller parts if memory runs out."""
        while True:
            reason = ""
            try:
                loss = self._accumulate(x, y)
            except (RuntimeError, MemoryError) as error:
                if not (self.strategy.can_retry and is_out_of_memory(error)):
                    raise
                reason = first_line(error)
            # Outside the handler: the error, and the memory that its traceback references, are freed
            (failed,) = self.strategy.agree(bool(reason))
            if not failed:
                return self.strategy.reduce(loss)
            self._use_less_memory(reason or "in another process")
            self._seed()

    def _accumulate(self, x: Tensor, y: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        losses = []
        divisor = y.numel() * self.strategy.shares if self._scored is None else self._scored
        for xs, ys in zip(x.tensor_split(self.parts), y.tensor_split(self.parts), strict=True):
            losses.append(self.strategy.gradients(xs, ys, divisor, self.autocast))
        return sum(losses[1:], losses[0])

    def _use_less_memory(self, reason: str) -> None:
        """Split batches into more parts; mean loss and gradients stay the same up to the order of summation."""
        parts = more_parts(self.windows, self.parts)
        if parts is None:
            raise RunError(
                f"step {self.iter + 1}: out of memory with a single window of the batch ({reason}); lower "
                "data.block_size or the model's size, try --trainer.dtype=bfloat16, or give the job more memory "
                "(slurm.mem, a larger GPU)"
            )
        self.parts = parts
        give_back(self.device)
        self.trigger("on_out_of_memory")

    def autocast(self) -> torch.autocast:
        """Return a context in which matrix products are computed in `trainer.dtype`."""
        return autocast(self.config.trainer.dtype, self.device)

    def _to_device(self, array: Array) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":  # copies overlap with kernels only from pinned memory
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _boundary(self) -> None:
        """Do whatever is due after this step: a row, an evaluation, a checkpoint."""
        settings = self.config.trainer
        if self.row_due:
            with self.paused():
                self._end_row()
                self._agree()
        due = (settings.ckpt_interval and self.iter % settings.ckpt_interval == 0) or self.iter == self._branch_step
        if not self.diverged and (due or self.save_requested or self.stop_requested or self.finished):
            with self.paused():
                self.trigger("on_checkpoint")
                self.save_requested = False
                self._agree()

    @property
    def row_due(self) -> bool:
        """True if the step just done gets a row in loss.csv."""
        s, i = self.config.trainer, self.iter
        return i in (1, s.max_iters) or i % s.log_interval == 0 or self.eval_due

    def rows_until(self, step: int) -> set[int]:
        """Return the steps up to `step` that have a row in loss.csv."""
        s = self.config.trainer
        steps = {1, *range(s.log_interval, step + 1, s.log_interval)}
        steps |= set(range(s.eval_interval, step + 1, s.eval_interval)) if s.eval_interval > 0 else set()
        return {i for i in (*steps, s.max_iters) if i <= step}

    @property
    def eval_due(self) -> bool:
        """True if the row of the step just done has an evaluation."""
        s, i = self.config.trainer, self.iter
        return i == s.max_iters or (s.eval_interval > 0 and i % s.eval_interval == 0)

    def _end_row(self) -> None:
        if self.iter == self.config.trainer.max_iters:
            self._before_end = self._progress()
        steps = self.iter - self._row_iter
        loss, norm = (self._sums / steps).tolist()
        self.diverged = not math.isfinite(loss)
        self.final_loss = math.nan if self.diverged else loss
        if self.iter == 1:
            self.initial_loss = self.final_loss
        if self.eval_due and not self.diverged:
            self.val_loss = self.evaluate()
            if self.val_loss is not None:
                self.evaluations.note(self.iter, self.val_loss)
        self.row = {
            "iter": self.iter,
            "loss": self.final_loss,
            "dt": round((self.seconds - self._row_seconds) / steps, 6),
            "val_loss": self.val_loss,
            "lr": learning_rate(self.iter, self.config.trainer),
            "grad_norm": norm if math.isfinite(norm) else math.nan,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 6),
        }
        self._sums.zero_()
        self._row_iter, self._row_seconds = self.iter, self.seconds
        self.trigger("on_row")

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside the `with` block from the training time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - self._since
        yield
        self._since = time.perf_counter()

    @torch.no_grad()
    def evaluate(self, windows: tuple[Array, Array] | None = None) -> float | None:
        """Return the NLL of the held-out windows in nats per scored token, None if nothing is scored. Deterministic.

        windows: windows to evaluate instead of the held-out ones.
        """
        x, y = windows or self.heldout
        scored = int((y != PADDING).sum())
        if not scored:
            return None
        self.model.eval()
        # always about 4096 tokens at a time: the result must not depend on the available memory
        size = max(1, 4096 // x.shape[1])
        nll = self.strategy.evaluate(x, y, size, self._nll)
        self.model.train()
        if windows is None:
            self.window_nll = nll
        return float(nll.sum()) / scored

    def _nll(self, x: Array, y: Array) -> Array:
        """Return the NLL summed over each window's scored tokens, (B,), computed in two halves if memory runs out."""
        try:
            with self.autocast():
                return sum_windows(self.model.token_losses(self._to_device(x), self._to_device(y)))
        except (RuntimeError, MemoryError) as error:
            if len(x) == 1 or not (self.strategy.can_retry and is_out_of_memory(error)):
                raise
        half = len(x) // 2
        return np.concatenate([self._nll(x[:half], y[:half]), self._nll(x[half:], y[half:])])

    def state(self) -> dict[str, Any]:
        """Return everything that `load_state` needs to continue bit-identically. Tensors are not copied.

        It is the same for every strategy, so that a run can continue with a different one; complete only on rank 0.
        """
        return {
            "fingerprint": self.config.fingerprint_until(self.iter),
            "step": self.iter,
            "tokens": self.tokens,
            "model": self.strategy.whole(self.model.state_dict()),
            "optimizer": self.strategy.whole(self.optimizer.state_dict()),
            "progress": {**self._progress(), "before_end": self._before_end},
            "inputs": self.inputs,
        }

    def _progress(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "initial_loss": self.initial_loss,
            "final_loss": self.final_loss,
            "sums": self._sums.clone(),
            "row_iter": self._row_iter,
            "row_seconds": self._row_seconds,
            "parts": self.parts,
            "evaluations": self.evaluations.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state()`."""
        self.strategy.load_model(state["model"])
        self.optimizer.load_state_dict(self.strategy.local(state["optimizer"]))
        self.iter = state["step"]
        progress = self._without_end(state["progress"])
        self.seconds = progress["seconds"]
        self.initial_loss, self.final_loss = progress["initial_loss"], progress["final_loss"]
        self._sums.copy_(progress["sums"])
        self._row_iter, self._row_seconds = progress["row_iter"], progress["row_seconds"]
        self.parts = min(progress["parts"], self.windows)
        self.evaluations.load(progress["evaluations"])

    def _without_end(self, progress: dict[str, Any]) -> dict[str, Any]:
        """Convert the progress of a finished run to what a longer run would have at that step: without a final row and
        evaluation, unless its intervals require them there."""
        before = progress.get("before_end")
        if not before or self.iter >= self.config.trainer.max_iters:
            return progress
        undone = [] if self.row_due else ["sums", "row_iter", "row_seconds", "final_loss"]
        undone += [] if self.eval_due else ["evaluations"]
        return {**progress, **{name: before[name] for name in undone}}

    def result(self) -> tuple[float | None, dict[str, Any]]:
        """Return the final held-out NLL and the model's state dict of a run that has not diverged."""
        # if the run was killed between its last checkpoint and its summary, this attempt has not evaluated yet
        nll = self.val_loss if self.val_loss is not None else self.evaluate()
        return nll, self.weights()

    def weights(self) -> dict[str, Any]:
        """Return the whole model's state dict; all processes of a run must call this together."""
        return self.strategy.whole(self.model.state_dict())


def step_seed(seed: int, step: int) -> int:
    """Return the seed of the default generator for the step that follows `step` completed steps."""
    digest = hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
