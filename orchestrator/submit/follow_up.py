"""The follow-up job: queues the next wave of a study. `python -m ablatrix.orchestrator.submit.follow_up STUDY`."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.slurm import commands, helper_jobs
from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.submit import wave_order, waves
from ablatrix.trainer.rundir.console import say
from ablatrix.trainer.rundir.errors import AblatrixError, RunError

if TYPE_CHECKING:
    from ablatrix.orchestrator.store.study_dir import Study


def main(argv: Sequence[str] | None = None) -> int:
    """Queue the runs that fit; if others still wait and nothing else will queue them, requeue this job."""
    [folder] = sys.argv[1:] if argv is None else argv
    study = None
    try:
        study = study_dir.load_study(Path(folder))
        if not shutil.which("sbatch"):
            raise RunError(f"{wave_order.NO_SBATCH} on {socket.gethostname()}, where follow-up jobs run")
        waves.resume(study, Scheduler(), say)
    except AblatrixError as error:
        say(f"error: {error}")
        order = wave_order.read(study) if study else None
        if study is None or (order and not isinstance(error, commands.NoAnswerError)):
            if study and order:
                order.write(study, problem=str(error))
            return 1
    _requeue_if_needed(study)
    return 0


def _requeue_if_needed(study: Study) -> None:
    job_id = os.environ.get("SLURM_JOB_ID", "")
    if wave_order.read(study) is None or not job_id:
        return
    with contextlib.suppress(commands.ControllerError):
        if set(helper_jobs.find(study, helper_jobs.FOLLOW_UP)) - {job_id}:
            return
    say(f"no room for a follow-up; job {job_id} is requeued")
    time.sleep(waves.RETRY_SECONDS)
    subprocess.run(["scontrol", "requeue", job_id], check=False)
    time.sleep(waves.RETRY_SECONDS)  # Slurm ends this job now


if __name__ == "__main__":
    sys.exit(main())
