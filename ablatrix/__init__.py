"""Ablation studies of small GPTs on Slurm: one YAML file in, a verdict with statistics out.

import ablatrix
study = ablatrix.load("out/quickstart")
study.verdicts()  # a pandas table
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ablatrix.orchestrator.api import Study, load, plan, status, submit

__version__ = "0.1.0"
__all__ = ["Study", "load", "plan", "status", "submit"]


def __getattr__(name: str) -> Any:
    """Return a function of the API, loaded on first use: a job that imports `ablatrix.trainer` does not need it."""
    if name not in __all__:
        raise AttributeError(f"module 'ablatrix' has no attribute {name!r}")
    from ablatrix.orchestrator import api

    return getattr(api, name)
