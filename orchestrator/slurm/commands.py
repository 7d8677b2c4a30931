"""Slurm's commands: squeue, scontrol, sacct, scancel, sbatch. Their output is parsed in job_parsing.py."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from ablatrix.orchestrator.slurm.job_parsing import VANISHED, Job, parse_sacct, parse_scontrol, parse_squeue
from ablatrix.orchestrator.store import selected_cluster
from ablatrix.trainer.rundir.errors import RunError

TIMEOUT = 30  # seconds; squeue gives up on a dead controller after 9, scontrol after 18
IDS_AT_ONCE = 100  # ids on one command line


class ControllerError(RunError):
    """A Slurm command that failed or did not answer."""


class NoAnswerError(ControllerError):
    """slurmctld did not answer: the request may or may not have been carried out."""


BUSY = "temporarily unable to accept job"  # the cluster has reached its MaxJobCount
# Substrings of Slurm's messages that mean that the controller did not answer
NO_ANSWER = ("timed out", "Unable to contact", "Connection", "Zero Bytes", "Communication", "standby mode")


Queue = dict[str, Job]  # by id


def available() -> bool:
    """True if sbatch is installed on this machine."""
    return shutil.which("sbatch") is not None


def belongs_to_cluster() -> bool:
    """True if this machine belongs to a cluster; its controller is not asked.

    Slurm's commands may be installed without a slurm.conf.
    """
    if not available():
        return False
    try:
        run_command(["scontrol", "show", "hostnames", "node"])
    except ControllerError as error:
        return "configuration source" not in str(error)
    return True


def foreign_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables of a user's session that would change our commands and jobs."""
    prefixes = ("SBATCH_", "SLURM_", "SQUEUE_", "SACCT_", "SCANCEL_", "SRUN_")
    return [name for name in environ if name.startswith(prefixes) and not name.startswith("SLURM_CONF")]


@contextlib.contextmanager
def own_environment() -> Iterator[None]:
    """Remove `foreign_variables` from this process's environment within the block."""
    hidden = {name: os.environ.pop(name) for name in foreign_variables()}
    try:
        yield
    finally:
        os.environ.update(hidden)


_CLUSTER_COMMANDS = ("squeue", "scontrol", "scancel", "sacct")


def run_command(command: Sequence[str], timeout: float = TIMEOUT) -> str:
    """Return the output of a Slurm command. Raises ControllerError if it fails or does not answer."""
    conf = os.environ.get("SLURM_CONF", "")
    if conf and not os.path.exists(conf):  # Slurm's commands would wait a minute for it
        raise ControllerError(
            f"SLURM_CONF names {conf}, which does not exist: correct or unset it, or use --launcher local"
        )
    foreign = foreign_variables()
    cluster = selected_cluster.selected()
    if cluster and command[0] in _CLUSTER_COMMANDS:
        command = [command[0], f"--clusters={cluster}", *command[1:]]
    try:
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name not in foreign},
        )
    except FileNotFoundError:
        raise ControllerError(f"{command[0]}: not found on this machine") from None
    except subprocess.TimeoutExpired as error:
        output = error.stderr.decode("utf-8", "replace") if isinstance(error.stderr, bytes) else ""
        if BUSY in output:  # refused; sbatch was waiting to retry
            raise ControllerError(f"{command[0]}: {' '.join(output.split())[-300:]}") from None
        raise NoAnswerError(f"{command[0]} did not answer in {timeout:g} s") from None
    if result.returncode:
        words = " ".join((result.stderr or result.stdout).split())[-300:].removeprefix(f"{command[0]}: ")
        raise controller_error(f"{command[0]}: {words or f'exit code {result.returncode}'}")
    return result.stdout


def controller_error(message: str) -> ControllerError:
    """Return the error for a message from Slurm."""
    return NoAnswerError(message) if any(known in message for known in NO_ANSWER) else ControllerError(message)


def queue(user: str = "", token: str = "") -> dict[str, Job]:
    """Return all waiting or running jobs of a user by id, with one call of squeue. Raises ControllerError.

    user: name or uid; default: this process's, because LOGNAME and USER may name another user after `su`. token: only
    jobs with this token.
    """
    users = {user} if user else own_names()
    # the comment and the script's path come last because they may contain a bar
    form = "--format=%i|%T|%u|%N|%r|%k|%o"
    command = ["squeue", "--noheader", "--array", f"--user={user or os.getuid()}", "--states=all", form]
    lines = run_command(command).split("\n")  # parsing thousands takes longer than searching them
    jobs = parse_squeue("\n".join(line for line in lines if token in line), *users)
    return {job_id: job for job_id, job in jobs.items() if token in ("", job.token)}


def own_names() -> set[str]:
    """Return this user as Slurm may print it: the uid, and the name if the machine has one for it."""
    with contextlib.suppress(KeyError):
        return {str(os.getuid()), pwd.getpwuid(os.getuid()).pw_name}
    return {str(os.getuid())}


def ended_jobs(job_ids: Iterable[str]) -> dict[str, Job]:
    """Return what Slurm still knows about jobs that have left the queue. Never raises.

    Calls scontrol for each array or job (it forgets after MinJobAge, 300 s by default), and sacct once for the rest.
    An id unknown to both is left out, or VANISHED if scontrol knows its array: Slurm drops a cancelled waiting task.
    """
    wanted = set(job_ids)
    found: dict[str, Job] = {}
    for base in sorted({job_id.partition("_")[0] for job_id in wanted}):
        try:
            found.update(parse_scontrol(run_command(["scontrol", "--oneliner", "show", "job", base])))
        except ControllerError:
            continue
    for job_id in wanted - found.keys():
        whole = found.get(f"{job_id.partition('_')[0]}_*")  # one record for all tasks of an array that never started
        if whole:
            found[job_id] = replace(whole, id=job_id)
    missing = wanted - found.keys()
    if missing:
        bases = ",".join(sorted({job_id.partition("_")[0] for job_id in missing}))
        fields = "--format=JobID,State,ExitCode,NodeList,Comment"
        try:
            out = run_command(["sacct", "-n", "-X", "--parsable2", "-j", bases, fields])
            found.update({key: job for key, job in parse_sacct(out).items() if key in missing})
        except ControllerError:
            pass  # no accounting database
    arrays = {job_id.partition("_")[0] for job_id in found if "_" in job_id}
    vanished = (job_id for job_id in wanted - found.keys() if job_id.partition("_")[0] in arrays)
    found.update({job_id: Job(job_id, VANISHED) for job_id in vanished})
    return {job_id: job for job_id, job in found.items() if job_id in wanted}


def cancel(job_ids: Iterable[str]) -> None:
    """Cancel these jobs. Raises ControllerError."""
    jobs = sorted(set(job_ids))
    for start in range(0, len(jobs), IDS_AT_ONCE):
        run_command(["scancel", *jobs[start : start + IDS_AT_ONCE]])


def release(job_ids: Sequence[str]) -> None:
    """Release held jobs. Raises ControllerError."""
    for start in range(0, len(job_ids), IDS_AT_ONCE):
        run_command(["scontrol", "release", ",".join(job_ids[start : start + IDS_AT_ONCE])])


def settings() -> dict[str, str]:
    """Return `scontrol show config` as a dict (MaxArraySize, ...); empty if a remote cluster does not show it.

    Raises ControllerError.
    """
    try:
        text = run_command(["scontrol", "show", "config"])
    except NoAnswerError:
        raise
    except ControllerError:
        if not selected_cluster.selected():
            raise
        return {}
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def cluster_name() -> str:
    """Return the name of the cluster that is queried (see store.selected_cluster), '' if unknown."""
    try:
        return selected_cluster.selected() or settings().get("ClusterName", "")
    except ControllerError:
        return ""
