"""The base class of all callbacks: hooks that the training loop calls at its events. Torch-free."""

from __future__ import annotations

from typing import Any, ClassVar


class Callback:
    """Something to do at events of a training; hooks that are not overridden do nothing.

    Hooks are called with the Trainer (trainer/loop.py), callbacks of higher priority first, those of equal priority in
    the order in which they were added. A hook may set `trainer.stop_requested` (the run ends with a checkpoint) or
    `trainer.save_requested` (a checkpoint at the next step boundary).
    """

    priority: ClassVar[int] = 0

    def on_train_start(self, trainer: Any) -> None:
        """Before the first step of this attempt."""

    def on_batch_end(self, trainer: Any) -> None:
        """After every step; `trainer.iter` steps are done."""

    def on_row(self, trainer: Any) -> None:
        """`trainer.row` is a new row of loss.csv."""

    def on_checkpoint(self, trainer: Any) -> None:
        """A checkpoint of `trainer.state()` is due; callbacks after `Checkpoints` find it written."""

    def on_out_of_memory(self, trainer: Any) -> None:
        """Batches are computed in more `trainer.parts` from now on."""

    def on_train_end(self, trainer: Any) -> None:
        """After the last step of this attempt, also if the run was stopped."""

    def close(self, trainer: Any) -> None:
        """Once the end of the run is on record: this may take long, and its failure changes nothing."""

    def call(self, hook: str, trainer: Any) -> None:
        """Call a hook by its name; overridden to handle what hooks raise."""
        getattr(self, hook)(trainer)


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))
