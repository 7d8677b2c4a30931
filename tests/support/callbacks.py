"""Callbacks made of a single function."""

from __future__ import annotations

from collections.abc import Callable

from ablatrix.trainer.callbacks.base import EVENTS, Callback
from ablatrix.trainer.loop import Trainer


def at(event: str, function: Callable[[Trainer], object], priority: int = 0) -> Callback:
    """Return a callback that calls `function(trainer)` on one event."""
    assert event in EVENTS
    made: Callback = type("At", (Callback,), {"priority": priority})()
    setattr(made, event, function)
    return made
