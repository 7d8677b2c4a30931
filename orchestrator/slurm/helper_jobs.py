"""Helper jobs of a study: the report after its last run, and the follow-up that queues the next wave of runs.

A study has one of each, found in the queue by a token made from the study's folder.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ablatrix.orchestrator.slurm import commands, job_parsing, sbatch
from ablatrix.orchestrator.slurm.job_preamble import preamble
from ablatrix.orchestrator.store import study_dir
from ablatrix.orchestrator.study.sbatch_options import mebibytes, minutes
from ablatrix.trainer.rundir.files import PRIVATE, atomic_write
from ablatrix.trainer.rundir.program import program

if TYPE_CHECKING:
    from ablatrix.orchestrator.slurm.batch import Batch
    from ablatrix.orchestrator.store.study_dir import Study
    from ablatrix.orchestrator.study.slurm_settings import SlurmSettings

REPORT, FOLLOW_UP = "report", "next"
PURPOSES = {
    REPORT: "The study's report, once all its runs have ended.",
    FOLLOW_UP: "Queues the study's next runs, once there is room for them.",
}
# Options that helper jobs share with the runs; they need no GPUs, nodes, memory or node features
KEPT = ("partition", "account", "qos", "reservation", "wckey", "clusters", "exclude", "mail-type", "mail-user")
MOST_MINUTES = 30
MOST_MEMORY = 2048  # MiB

Queue = Mapping[str, job_parsing.Job]


def token(study: Study, kind: str) -> str:
    """Return the token of a study's helper job of this kind."""
    return hashlib.sha256(f"{kind}\0{study.folder.resolve()}".encode("utf-8", "replace")).hexdigest()[:16]


def script(batch: Batch, kind: str) -> str:
    """Return the script of a helper job, with the environment and the setup lines of the runs.

    Helper jobs send the study's messages, and only they receive the variable with the webhook's URL.
    """
    notify = batch.study.notify
    verb = ["report", "--notify"] if notify else ["report"]
    module = {REPORT: ["ablatrix", *verb], FOLLOW_UP: ["ablatrix.orchestrator.submit.follow_up"]}[kind]
    command = [sys.executable, "-P", "-m", *module, str(batch.study.folder)]
    mail = notify.mail_options(of_runs=False) if notify and kind == REPORT else {}
    batch = replace(batch, exports=[*batch.exports, *(notify.exports if notify else [])])
    marks = sbatch.job_marks(batch, token(batch.study, kind))
    return sbatch.render(
        "helper.sbatch.j2",
        purpose=PURPOSES[kind],
        job_name=f"{batch.study.name}-{kind}",
        logs=sbatch.log_path(batch.study, f"{kind}-%j.out"),
        directives=sbatch.directives(marks | mail | options(batch.settings)),
        preamble=preamble(batch),
        command=shlex.join(command),
    )


def options(settings: SlurmSettings) -> dict[str, str | int | bool]:
    """Return the options of helper jobs: one core and little memory on the runs' partition and account.

    `slurm.helper_jobs` takes precedence.
    """
    given = sbatch.sbatch_options(settings)
    small: dict[str, str | int | bool] = {name: given[name] for name in KEPT if name in given}
    small |= {"nodes": 1, "ntasks": 1, "cpus-per-task": 1, "time": min(MOST_MINUTES, minutes(settings.time))}
    if any(name.startswith("mem") for name in given):  # a site that does not track memory may refuse the option
        size = mebibytes(str(given.get("mem", ""))) or MOST_MEMORY
        small["mem"] = f"{min(MOST_MEMORY, max(1, int(size)))}M"
    return small | settings.helper_jobs


def queue(batch: Batch, kind: str, dependency: str) -> str:
    """Replace the study's waiting helper job of this kind and return the new one's id.

    Raises ControllerError or OSError.
    """
    cancel(batch.study, [kind])
    path = batch.study.folder / study_dir.LOGS / f"{token(batch.study, kind)}-{kind}.sbatch"
    atomic_write(path, script(batch, kind), durable=False, mode=PRIVATE)
    candidates = sbatch.call_sbatch(path, dependency)
    try:
        queued = find(batch.study, kind)
    except commands.ControllerError:
        queued = []
    return next((job for job in candidates if job in queued), queued[-1] if queued else candidates[0])


def queue_report(batch: Batch, arrays: Sequence[str]) -> str:
    """Queue the job that writes the report when all arrays have ended; return a sentence that says so."""
    try:
        job = queue(batch, REPORT, "afterany:" + ":".join(arrays) if arrays else "")
    except (commands.ControllerError, OSError) as error:
        return (
            f"no report job ({error}); when the runs have ended, run `{program()} report "
            f"{shlex.quote(str(batch.study.folder))}`, or set slurm.helper_jobs, such as {{partition: cpu}}"
        )
    return f"queued the report after them as job {job}"


def find(study: Study, kind: str, jobs: Queue | None = None) -> list[str]:
    """Return the ids of the study's waiting or running helper jobs of this kind, oldest first. Raises ControllerError.

    jobs: the queue; by default it is read.
    """
    found = (commands.queue() if jobs is None else jobs).values()
    wanted = token(study, kind)
    return sorted((job.id for job in found if job.token == wanted and job.alive and job.id.isdigit()), key=int)


def cancel(study: Study, kinds: Iterable[str] = (FOLLOW_UP, REPORT), running: bool = False) -> list[str]:
    """Cancel the study's waiting helper jobs, with `running` also those that run, and return their ids.

    Raises ControllerError.
    """
    jobs = commands.queue()
    ids = [
        job for kind in kinds for job in find(study, kind, jobs) if running or jobs[job].state in job_parsing.PENDING
    ]
    if ids:
        commands.cancel(ids)
    return ids


def describe(study: Study, jobs: Queue | None) -> list[str]:
    """Return a line for each report job in the queue."""
    if not jobs:
        return []
    reports = [jobs[job] for job in find(study, REPORT, jobs)]
    return [f"report: job {job.id} {_describe_progress(job)}" for job in reports]


def _describe_progress(job: job_parsing.Job) -> str:
    if job.state in job_parsing.RUNNING:
        return "runs"
    return job.hold or "waits for the runs to end"
