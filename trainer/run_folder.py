"""Prepare the run's folder for training: claim it, check its configuration, and remove an earlier result."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path

from ablatrix.trainer import checkpoint
from ablatrix.trainer import resume as resuming
from ablatrix.trainer.config import RunConfig, load
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.attempts import Attempt
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.files import FULL, TRANSIENT, atomic_write

logger = logging.getLogger(__name__)


def read_config(run_dir: Path) -> RunConfig | None:
    """Return the configuration of the run in a folder, None if there is none."""
    path = run_dir / run_files.CONFIG
    return load(path) if path.exists() else None


def is_finished(run_dir: Path, config: RunConfig) -> bool:
    """True if the folder has a result for this configuration. Raises UserError if its data has changed since."""
    summary = run_files.read_json(run_dir / run_files.SUMMARY)
    if config.trainer.resume != "auto" or summary is None or summary.get("fingerprint") != config.fingerprint():
        return False
    resuming.refuse_changed_inputs(config, run_dir / run_files.SUMMARY, "it finished")
    logger.info(f"{run_dir}: already finished; --trainer.resume=none starts it again")
    return True


def claim(run_dir: Path) -> Attempt:
    """Claim the folder for this process. Raises UserError if it cannot be written."""
    try:
        return Attempt.take(run_dir)
    except OSError as error:
        if error.errno in FULL | TRANSIENT:
            raise
        where = error.filename if error.filename and os.path.lexists(error.filename) else run_dir  # what is in the way
        raise UserError(f"cannot write to {where}: {error.strerror}; choose another --system.work_dir") from None


def prepare(run_dir: Path, config: RunConfig, argv: list[str], branch: int | None = None) -> None:
    """Write config.json and args.txt, and remove files that this attempt will write again.

    branch: the step from which the run continues with different settings.
    """
    if branch is not None:
        checkpoint.drop_after(run_dir, branch)
        summary = run_files.read_json(run_dir / run_files.SUMMARY)
        if summary and not run_files.best_is_valid_at(summary, branch, config.trainer.eval_interval):
            (run_dir / run_files.BEST).unlink(missing_ok=True)
        _remove_result(run_dir, everything=False)
    there = read_config(run_dir)
    if there is None or there.fingerprint() != config.fingerprint():  # missing, or without the sizes filled in
        atomic_write(run_dir / run_files.CONFIG, config.to_json())
    atomic_write(run_dir / run_files.ARGS, shlex.join([sys.executable, "-m", "ablatrix.trainer", *argv]) + "\n")
    checkpoint.remove_temporary_files(run_dir)
    if config.trainer.resume != "auto":
        _remove_result(run_dir, everything=config.trainer.resume == "none")


def _remove_result(run_dir: Path, everything: bool) -> None:
    more = (run_files.BEST, run_files.METRICS, run_files.STOP_REQUEST, run_files.SAVE_REQUEST)
    for name in (run_files.SUMMARY, run_files.MODEL, run_files.VAL_DOCUMENTS, *(more if everything else ())):
        (run_dir / name).unlink(missing_ok=True)
    for path in checkpoint.checkpoints(run_dir) if everything else []:
        path.unlink()
