"""Settings of Ablatrix from environment variables."""

from __future__ import annotations

import math
import os

from ablatrix.trainer.rundir.errors import UserError


def seconds(name: str, otherwise: float) -> float:
    """Return a time from a variable, `otherwise` if it is not set. Raise UserError unless it is a number >= 0."""
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
