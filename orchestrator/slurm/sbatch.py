"""The sbatch launcher: job scripts from the templates in sbatch/, which users can edit and submit by hand."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.slurm import commands, job_parsing
from ablatrix.orchestrator.slurm.batch import Batch, check_folder
from ablatrix.orchestrator.slurm.job_preamble import preamble
from ablatrix.orchestrator.store.study_dir import LOGS, Study
from ablatrix.orchestrator.study import env_settings, exported_env
from ablatrix.trainer.rundir.files import PRIVATE, atomic_write
from ablatrix.trainer.rundir.program import PACKAGE

if TYPE_CHECKING:
    import jinja2

    from ablatrix.orchestrator.study.slurm_settings import SlurmSettings

SBATCH_TIMEOUT = env_settings.seconds("ABLATRIX_SBATCH_TIMEOUT", 60.0)


class SbatchLauncher:
    """Queues each batch as one array, with a script from sbatch/array.sbatch.j2."""

    name = "sbatch"

    def script(self, batch: Batch) -> str:
        return render(
            "array.sbatch.j2",
            job_name=batch.study.name,
            logs=log_path(batch.study, "%A_%a.out" if len(batch.jobs) > 1 else "%j.out"),
            directives=directives(job_options(batch)),
            nodes=batch.settings.nodes,
            srun=shlex.quote(" ".join(["srun", *srun_options(batch.settings)])),
            tasks=len(batch.jobs),
            max_parallel=batch.settings.max_parallel,
            signal_seconds=batch.settings.signal_seconds,
            preamble=preamble(batch),
            commands=[shlex.join(command) for command in batch.commands()],
        )

    def launch(self, batch: Batch) -> list[str]:
        path = batch.study.folder / LOGS / f"{batch.token}.sbatch"
        # `slurm.setup` may contain a secret (`export WANDB_API_KEY=...`): sbatch reads the script as this user
        atomic_write(path, self.script(batch), durable=False, mode=PRIVATE)
        return call_sbatch(path, batch.dependency)


def call_sbatch(script: Path, dependency: str | None = None) -> list[str]:
    """Submit a script and return the numbers in sbatch's answer that may be the job's id, most likely first.

    A site's wrapper may print lines of its own, with a year or a quota for example. Raises ControllerError.
    """
    # without the second option, a job whose dependency can no longer be met would wait forever
    after = [f"--dependency={dependency}", "--kill-on-invalid-dep=yes"] if dependency else []
    output = commands.run_command(["sbatch", "--parsable", *after, str(script)], timeout=SBATCH_TIMEOUT)
    found = _find_ids(output)
    if not found:
        raise commands.NoAnswerError(f"sbatch: no job id in its answer: {output.strip()[:200]!r}")
    return found


_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_ANSWER = re.compile(
    r"^[ \t]*(?:Submitted batch job )?([0-9]{1,10})(?:;.*|[ \t]+on cluster .*)?[ \t\r]*$", re.MULTILINE
)


def _find_ids(output: str) -> list[str]:
    """Return the numbers that are alone on a line, last first: a wrapper's output precedes sbatch's answer."""
    return list(dict.fromkeys(reversed(_ANSWER.findall(_COLOR.sub("", output)))))


def log_path(study: Study, pattern: str) -> str:
    """Return the value of --output, in which Slurm interprets quotes and %. Raises UserError for an unusable path."""
    check_folder(study.folder, SbatchLauncher.name)
    folder = (study.folder / LOGS).resolve()
    return shlex.quote(str(folder).replace("%", "%%") + "/" + pattern)


def job_options(batch: Batch) -> dict[str, str | int | bool]:
    """Return the sbatch options of a batch's jobs that are the same under every launcher."""
    notify = batch.study.notify
    mail = notify.mail_options(of_runs=True) if notify else {}
    return {**job_marks(batch, batch.token), **mail, **sbatch_options(batch.settings)}


def job_marks(batch: Batch, token: str) -> dict[str, str | int | bool]:
    """Return the options of every job of a study: the comment with its token, its environment, requeueing."""
    return {
        "comment": job_parsing.comment(token, batch.settings.comment),
        "export": exported_env.option(batch.exports),
        ("requeue" if batch.settings.requeue else "no-requeue"): True,
    }


def directives(options: Mapping[str, str | int | bool]) -> list[str]:
    """Return sbatch options as `name=value`, quoted as sbatch reads them in a script, or `name` for flags."""
    return [name if value is True else f"{name}={shlex.quote(str(value))}" for name, value in options.items()]


def sbatch_options(settings: SlurmSettings) -> dict[str, str | int | bool]:
    """Return the sbatch options that request the resources."""
    options = {
        "clusters": settings.clusters,
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "exclude": settings.exclude,
        "gpus-per-node": settings.gpus_per_node or None,
        "cpus-per-task": settings.cpus_per_task,
        "mem": settings.mem,
        "time": settings.time,
        **settings.extra,
    }
    return {name: value for name, value in options.items() if value is not None}


def srun_options(settings: SlurmSettings) -> list[str]:
    """Return the srun options that start one task per node and end all tasks if one fails."""
    return ["--ntasks-per-node=1", "--kill-on-bad-exit=1"] if settings.nodes > 1 else []


def render(template: str, **values: Any) -> str:
    """Return a job script from a template in sbatch/."""
    return _templates().get_template(template).render(**values)


@functools.cache
def _templates() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(PACKAGE) / "sbatch"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
