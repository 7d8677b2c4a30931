"""A batch of jobs that one sbatch call queues, and the interface of launchers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ablatrix.orchestrator.store import job_command, run_facts
from ablatrix.orchestrator.store.study_dir import Study, StudyRun
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.node_layout import Layout
    from ablatrix.orchestrator.study.slurm_settings import SlurmSettings

Members = list[tuple[StudyRun, int]]  # the runs of one job, each with its claimed attempt


@dataclass(frozen=True)
class Batch:
    """The jobs of one array, or a single plain job."""

    study: Study
    jobs: Sequence[Members]
    token: str
    settings: SlurmSettings
    code: Path  # the code snapshot
    exports: Sequence[str] = ()  # variables of the user's shell, besides the allow-list
    after: Sequence[str] = ()  # jobs that must have ended before it starts

    @property
    def members(self) -> Members:
        """The runs of all jobs."""
        return [member for job in self.jobs for member in job]

    @property
    def dependency(self) -> str | None:
        """The value of sbatch's --dependency."""
        return "afterany:" + ":".join(self.after) if self.after else None

    @property
    def threads(self) -> int:
        """CPU threads of each run: the job's cores divided by the largest number of runs in a job.

        Runs of a smaller job get no more: a run that is resumed alone must add up in the same order.
        """
        return max(1, self.settings.cpus_per_task // self.settings.runs_per_job)

    @property
    def shared(self) -> bool:
        """True if each run of the batch is shared by several processes."""
        return any(run_facts.is_distributed(run.folder) for job in self.jobs for run, _ in job)

    def commands(self, layout: Layout | None = None) -> list[list[str]]:
        """Return each job's command, which Slurm starts on each of its nodes. layout: by default from the settings."""
        layout = layout or self.settings.layout
        return [job_command.task_command([(run.folder, attempt) for run, attempt in job], layout) for job in self.jobs]


class Launcher(Protocol):
    """Queues a batch in Slurm."""

    name: str

    def launch(self, batch: Batch) -> list[str]:
        """Queue the batch with one sbatch call and return the ids that the job may have, most likely first.

        Raises ControllerError with sbatch's message; then only the queue shows whether a job was queued.
        """

    def script(self, batch: Batch) -> str:
        """Return the exact script that sbatch would receive."""


def job_ids(base: str, count: int) -> list[str]:
    """Return the ids of the tasks of an array, or of a single job."""
    return [base] if count == 1 else [f"{base}_{index}" for index in range(count)]


def check_folder(study: Path, launcher: str) -> None:
    """Raise UserError if this launcher's job scripts cannot contain the path of the study or of the working folder."""
    for path in (study.resolve(), Path.cwd()):
        problem = _path_problem(str(path), launcher)
        if problem:
            raise UserError(f"{str(path)!r}: {problem}; choose another folder, or another `output:`")
    names = [path.name for path in study.parent.iterdir()] if study.parent.is_dir() else []
    other = next((name for name in names if name.casefold() == study.name.casefold()), study.name)
    if study.name not in names and other != study.name:
        raise UserError(f"{study.parent / other} differs from {study.name} only in case; choose another name")
    if launcher == "submitit" and "%" in str(study.resolve()):
        raise UserError(f"{study.resolve()}: submitit expands % in paths; use --launcher sbatch")


def _path_problem(path: str, launcher: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        return "not valid UTF-8"
    if ":" in path:
        return "a colon would split the path of the jobs' code in PYTHONPATH"
    if launcher != "local" and not path.isprintable():
        return "a path with control characters cannot be used with Slurm"
    # a backslash in --output turns off the replacement of %j
    return "Slurm finds no log in a path with a backslash" if launcher != "local" and "\\" in path else ""
