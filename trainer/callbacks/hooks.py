"""The moments of a training at which the Trainer calls its callbacks. Free of torch."""

from __future__ import annotations

EVENTS = ("on_train_start", "on_batch_end", "on_row", "on_checkpoint", "on_out_of_memory", "on_train_end")
