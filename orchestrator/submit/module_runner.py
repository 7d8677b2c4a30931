"""Run one of our modules in a process of its own: it imports torch, or must not open connections."""

from __future__ import annotations

import os
import subprocess
import sys

from ablatrix.orchestrator.store import job_command
from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.trainer.rundir.errors import RunError


def run_module(name: str, *arguments: str, text: str | None = None) -> str:
    """Return the last line of the output of `python -m name` given `text`; a site may print others before it.

    Raises RunError with the last line of its errors.
    """
    environment = {**os.environ, **job_command.environment(code_root(), threads=1)}
    command = [sys.executable, "-P", "-m", name, *arguments]
    result = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise RunError(lines[-1] if lines else f"{name}: exit code {result.returncode}")
    return result.stdout.rstrip("\n").rpartition("\n")[2]
