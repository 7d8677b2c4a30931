"""The command lines and environment of a job and of the trainers that it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ablatrix.orchestrator.store.run_facts import is_command
from ablatrix.orchestrator.study.node_layout import Layout
from ablatrix.trainer.rundir import run_files

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

ALONE = Layout()


def trainer_command(run_dir: Path | str) -> list[str]:
    """Return the command that trains a run, the same under every launcher.

    `-P` keeps the working folder off sys.path: the trainer comes from PYTHONPATH, the code snapshot.
    """
    if is_command(run_dir):
        return [sys.executable, "-P", "-m", "ablatrix.orchestrator.job", str(run_dir)]
    flags = ["--config", f"{run_dir}/{run_files.CONFIG}", f"--system.work_dir={run_dir}", "--trainer.resume=auto"]
    return [sys.executable, "-P", "-m", "ablatrix.trainer", *flags]


def task_command(members: Sequence[tuple[Path, int]], layout: Layout = ALONE) -> list[str]:
    """Return the command that a job runs on each of its nodes. members: (run folder, attempt) pairs."""
    runs = [f"{folder}:{attempt}" for folder, attempt in members]
    return [sys.executable, "-P", "-m", "ablatrix.orchestrator.job.task", *layout.flags(), *runs]


def environment(code: Path, threads: int | None = None) -> dict[str, str]:
    """Return the variables of a job: the code snapshot first on PYTHONPATH, offline mode, `threads` CPU threads."""
    path = os.pathsep.join(filter(None, [str(code.resolve()), os.environ.get("PYTHONPATH", "")]))
    values = {**OFFLINE, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    if threads:
        values["OMP_NUM_THREADS"] = str(threads)
    return values
