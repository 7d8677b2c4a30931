"""Settings of Ablatrix in environment variables."""

from __future__ import annotations

import math
import os

from ablatrix.trainer.rundir.errors import UserError


def seconds(name: str, otherwise: float) -> float:
    """Return a time, `otherwise` if the variable is not set. Raise UserError unless it is a number of 0 or more."""
    text = os.environ.get(name)
    if text is None:
        return otherwise
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"{name}={text}: in the environment; give a number of seconds, or unset it")
    return value
