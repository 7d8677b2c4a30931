"""The submitit launcher: its AutoExecutor submits the jobs; states come from the run folders and squeue."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any

from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.slurm.batch import Batch, check_folder
from ablatrix.orchestrator.slurm.job_preamble import preamble
from ablatrix.orchestrator.slurm.sbatch import job_options, srun_options
from ablatrix.orchestrator.store.study_dir import LOGS
from ablatrix.orchestrator.study.sbatch_options import minutes
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.owners import make_private_folder


class SubmititLauncher:
    """Queues each batch as one array through submitit."""

    name = "submitit"

    def launch(self, batch: Batch) -> list[str]:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = self._executor(batch)
        # contains scripts with the study's setup, and pickles that a job loads: no other user may read or write there
        make_private_folder(batch.study.folder / LOGS / "submitit")
        make_private_folder(batch.study.folder / LOGS / "submitit" / batch.token)
        try:
            with commands.own_environment(), executor.batch():
                # execv replaces submitit's process with our task, dropping its signal handling and result pickle;
                # only strings and a function of the standard library are pickled
                jobs = [executor.submit(os.execv, sys.executable, command) for command in batch.commands()]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise commands.controller_error(" ".join(str(error).split())) from None
        return [jobs[0].job_id.partition("_")[0]]

    def script(self, batch: Batch) -> str:
        executor = self._executor(batch)
        inner = executor._executor
        if len(batch.jobs) > 1:
            inner.parameters["map_count"] = len(batch.jobs)
        return str(inner._make_submission_file_text(inner._submitit_command_str, batch.token))

    def _executor(self, batch: Batch) -> Any:
        import submitit

        # %j, not %A_%a: with the latter, submitit raises after sbatch, which orphans the array
        check_folder(batch.study.folder, self.name)  # refuses paths that submitit would put into its script as commands
        # the token in the script's path is our mark on the job if a site overwrites its comment
        folder = (batch.study.folder / LOGS / "submitit").resolve() / batch.token / "%j"
        try:
            # -P, as in all job commands: a random.py in the working folder must not hide Python's own
            python = shlex.join([sys.executable, "-P"])
            executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_python=python)
        except RuntimeError as error:
            raise UserError(f"launcher submitit: {error}; use --launcher local") from None
        settings = batch.settings
        after = {"dependency": batch.dependency} if batch.dependency else {}
        parameters = {
            "name": batch.study.name,
            "timeout_min": minutes(settings.time),
            "slurm_nodes": settings.nodes,
            "slurm_ntasks_per_node": 1,
            "slurm_signal_delay_s": settings.signal_seconds,
            "slurm_array_parallelism": settings.max_parallel or len(batch.jobs),
            "slurm_setup": preamble(batch),
            "slurm_srun_args": srun_options(settings),
            "slurm_stderr_to_stdout": True,
            "slurm_additional_parameters": job_options(batch) | after,
        }
        executor.update_parameters(**parameters)
        executor._executor.parameters["wckey"] = None  # submitit sets its own, which sites that check wckeys refuse
        return executor
