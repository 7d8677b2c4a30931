"""Callbacks of the user's own: `callbacks.custom: [mypackage.mymodule:MyCallback]`.

The class is made without arguments and has any of these methods, which are called with the Trainer (trainer/loop.py):

    on_train_start(trainer)     before the first step of this attempt
    on_batch_end(trainer)       after every step: `trainer.iter` steps are done
    on_row(trainer)             `trainer.row` is a new row of loss.csv (a dict)
    on_checkpoint(trainer)      a checkpoint has been written
    on_out_of_memory(trainer)   batches are worked through in smaller parts from now on
    on_train_end(trainer)       after the last step of this attempt, also where the run was stopped

`trainer.config`, `trainer.model` and `trainer.device` may be used; `trainer.stop_requested = True` ends the run with a
checkpoint, `trainer.save_requested = True` asks for one. In a run of several processes only the lead calls them.

The module is looked for like every import, and then in the working folder. What such a callback raises ends the run
with an error that names it: what somebody wrote on purpose must not fail in silence. Its name is part of the run's
hash, for it may change the result; its code is not: give a changed one a new name.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ablatrix.models.reference import describe_absence, describe_conflict, import_module
from ablatrix.trainer.callbacks.hooks import EVENTS
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.out_of_memory import first_line
from ablatrix.trainer.rundir.errors import AblatrixError, ConfigError, RunError, UserError

if TYPE_CHECKING:
    from ablatrix.trainer.loop import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plugin:
    """A callback of the user's own, ready to be called."""

    name: str
    callback: Any

    def attach(self, trainer: Trainer) -> None:
        for event in EVENTS:
            if hasattr(self.callback, event):
                trainer.add_callback(event, partial(self._call, event))

    def _call(self, event: str, trainer: Trainer) -> None:
        stopping = trainer.stop_requested
        try:
            getattr(self.callback, event)(trainer)
        except AblatrixError:
            raise
        except Exception as error:
            logger.error("".join(traceback.format_exception(error)).rstrip())
            raise RunError(f"callbacks.custom: {self.name}: {event} raised {_told(error)}") from error
        if trainer.stop_requested and not stopping:
            trainer.stopped_by = f"the callback {self.name}"


def load(names: Sequence[str]) -> list[Plugin]:
    """Import and make the callbacks. Raises UserError with one line per one that cannot be used."""
    made, problems = [], []
    for name in names:
        try:
            made.append(Plugin(name, _make(name)))
        except UserError as error:
            problems.append(f"callbacks.custom: {name}: {error}")
    if problems:
        raise ConfigError(problems)
    return made


def find_problem(name: str) -> str | None:
    """Return why a callback cannot be found, else None. Imports nothing of the user's."""
    return describe_conflict(name) or describe_absence(name)


def _make(name: str) -> Any:
    if problem := find_problem(name):
        raise UserError(problem)
    module_name, _, attribute = name.partition(":")
    try:
        module = import_module(name)
    except Exception as error:
        raise UserError(f"cannot be imported: {_told(error)}") from error
    made = getattr(module, attribute, None)
    if made is None:
        classes = [n for n, value in vars(module).items() if inspect.isclass(value)]
        raise UserError(f"module {module_name} ({module.__file__}) has no {attribute}{nearest(attribute, classes)}")
    if not inspect.isclass(made):
        raise UserError("is not a class")
    methods = [n for n, _ in inspect.getmembers(made, callable) if n.startswith("on_")]
    unknown = [n for n in methods if n not in EVENTS]
    if unknown:
        raise UserError(f"{unknown[0]} is no event{nearest(unknown[0], EVENTS)}; events: {', '.join(EVENTS)}")
    if not methods:
        raise UserError(f"has none of the methods {', '.join(EVENTS)}")
    try:
        return made()
    except Exception as error:
        raise UserError(f"cannot be made without arguments: {_told(error)}") from error


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
