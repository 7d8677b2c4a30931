"""Settings of Ablatrix's own that are given in the environment."""

from __future__ import annotations

import math
import os

from ablatrix.trainer.rundir.errors import UserError


def seconds(name: str, otherwise: float) -> float:
    """A time; `otherwise` where the variable is not set. Raises UserError for what is none, or is below 0."""
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
