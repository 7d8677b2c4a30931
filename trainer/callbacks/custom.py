"""User-defined callbacks: `callbacks.custom: [mypackage.mymodule:MyCallback]`.

The class is instantiated without arguments and implements any of the hooks of `base.Callback`; it need not inherit from
it. Hooks may use `trainer.config`, `trainer.model` and `trainer.device`. Of several processes, only rank 0 calls them.

The module is looked up like any import, then in the working folder. An error in a callback ends the run with a message
that names the callback. The name is part of the run's hash, because a callback may change the result; the code is not:
give a changed callback a new name.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ablatrix.models.reference import describe_absence, describe_conflict, import_module
from ablatrix.trainer.callbacks.base import EVENTS, Callback
from ablatrix.trainer.config.suggestions import nearest
from ablatrix.trainer.out_of_memory import first_line
from ablatrix.trainer.rundir.errors import AblatrixError, ConfigError, RunError, UserError

if TYPE_CHECKING:
    from ablatrix.trainer.loop import Trainer

logger = logging.getLogger(__name__)


class CustomCallback(Callback):
    """Wrapper of a user's callback; any exception from it ends the run."""

    priority = -100  # after all others

    def __init__(self, name: str, callback: Any) -> None:
        self.name, self.callback = name, callback

    def call(self, hook: str, trainer: Trainer) -> None:
        method = getattr(self.callback, hook, None)
        if method is None or hook not in EVENTS:
            return
        stopping = trainer.stop_requested
        try:
            method(trainer)
        except AblatrixError:
            raise
        except Exception as error:
            logger.exception("callbacks.custom: %s: %s", self.name, hook)
            raise RunError(f"callbacks.custom: {self.name}: {hook} raised {_describe(error)}") from error
        if trainer.stop_requested and not stopping:
            trainer.stopped_by = f"the callback {self.name}"


def load(names: Sequence[str]) -> list[CustomCallback]:
    """Import and instantiate the callbacks. Raises ConfigError with one line per callback that cannot be used."""
    made, problems = [], []
    for name in names:
        try:
            made.append(CustomCallback(name, _make(name)))
        except UserError as error:
            problems.append(f"callbacks.custom: {name}: {error}")
    if problems:
        raise ConfigError(problems)
    return made


def find_problem(name: str) -> str | None:
    """Return why a callback cannot be found, else None. Does not import the user's code."""
    return describe_conflict(name) or describe_absence(name)


def _make(name: str) -> Any:
    if problem := find_problem(name):
        raise UserError(problem)
    module_name, _, attribute = name.partition(":")
    try:
        module = import_module(name)
    except Exception as error:
        raise UserError(f"import failed: {_describe(error)}") from error
    made = getattr(module, attribute, None)
    if made is None:
        classes = [n for n, value in vars(module).items() if inspect.isclass(value)]
        raise UserError(f"module {module_name} ({module.__file__}) has no {attribute}{nearest(attribute, classes)}")
    if not inspect.isclass(made):
        raise UserError("not a class")
    methods = [n for n, _ in inspect.getmembers(made, callable) if n.startswith("on_")]
    unknown = [n for n in methods if n not in EVENTS]
    if unknown:
        raise UserError(f"{unknown[0]} is not an event{nearest(unknown[0], EVENTS)}; events: {', '.join(EVENTS)}")
    if not methods:
        raise UserError(f"none of the methods {', '.join(EVENTS)}")
    try:
        return made()
    except Exception as error:
        raise UserError(f"no instance without arguments: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
