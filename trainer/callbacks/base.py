"""Base class of all callbacks, with the hooks that the training loop calls. Torch-free."""

from __future__ import annotations

from typing import Any, ClassVar


class Callback:
    """Base class of callbacks; hooks that are not overridden do nothing.

    Hooks are called with the Trainer (trainer/loop.py), in order of decreasing priority, and at equal priority in the
    order in which callbacks were added. A hook may set `trainer.stop_requested` (the run ends with a checkpoint) or
    `trainer.save_requested` (a checkpoint is written at the next step boundary).
    """

    priority: ClassVar[int] = 0

    def on_train_start(self, trainer: Any) -> None:
        """Called before the first step of this attempt."""

    def on_batch_end(self, trainer: Any) -> None:
        """Called after every step; `trainer.iter` steps are done."""

    def on_row(self, trainer: Any) -> None:
        """Called when `trainer.row` is a new row of loss.csv."""

    def on_checkpoint(self, trainer: Any) -> None:
        """Called when a checkpoint of `trainer.state()` is due; `Checkpoints` writes it before later callbacks run."""

    def on_out_of_memory(self, trainer: Any) -> None:
        """Called when batches will be computed in more `trainer.parts` from now on."""

    def on_train_end(self, trainer: Any) -> None:
        """Called after the last step of this attempt, even if the run was stopped."""

    def close(self, trainer: Any) -> None:
        """Called once the end of the run is on record: this may take long, and a failure here has no effect."""

    def call(self, hook: str, trainer: Any) -> None:
        """Call a hook by name; override this to handle exceptions from hooks."""
        getattr(self, hook)(trainer)


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))
