"""Slurm's commands (squeue, scontrol, sacct, scancel) and the parsers of what they print."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ablatrix.orchestrator.store import selected_cluster
from ablatrix.trainer.rundir.errors import RunError

TIMEOUT = 30  # seconds; squeue gives up on a dead controller after 9, scontrol after 18
# Our mark on a job: in its comment, or in the path of its script for sites that overwrite comments
TOKEN = re.compile(r"ablatrix:([0-9a-f]{16})|/([0-9a-f]{16})(?:-[a-z]+)?\.sbatch\b|/submitit/([0-9a-f]{16})/")

PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT", "SIGNALING", "RESIZING"}
VANISHED = "VANISHED"  # a task that is no longer in its array, which is known; not one of Slurm's states
ENDED = (
    "COMPLETED",
    "CANCELLED",
    "FAILED",
    "TIMEOUT",
    "NODE_FAIL",
    "PREEMPTED",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "REVOKED",
    "LAUNCH_FAILED",
)


# A job's id as Slurm writes it: 123, 123_4, 123+1 (a part of a heterogeneous job), 123_[0,4-9:2%3]
_JOB_ID = re.compile(r"[0-9]{1,10}(?:_[0-9]{1,10}|\+[0-9]{1,10})?")
_ARRAY = re.compile(r"([0-9]{1,10})_\[([0-9,:-]*)(?:%[0-9]+)?\]?")
_RANGE = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10})(?::([0-9]{1,10}))?)?")
NO_TASK = ("4294967294", "N/A")  # as ArrayTaskId: the record stands for all tasks of the array


# Slurm holds a job that a node could not start, until it is released
LAUNCH_FAILED = "launch failed requeued held"
HELD = {
    LAUNCH_FAILED: "submit again to release it",
    "JobHeldUser": "release it by scontrol release",
    "JobHeldAdmin": "only an administrator can release it",
}
IDS_AT_ONCE = 100  # ids on one command line


class ControllerError(RunError):
    """A Slurm command failed or did not answer."""


class NoAnswerError(ControllerError):
    """slurmctld did not answer: the request may or may not have been carried out."""


BUSY = "temporarily unable to accept job"  # the cluster's MaxJobCount is reached
# Words by which Slurm's commands report that the controller did not answer
NO_ANSWER = ("timed out", "Unable to contact", "Connection", "Zero Bytes", "Communication", "standby mode")


@dataclass(frozen=True)
class Job:
    """One job or array task as the scheduler sees it."""

    id: str  # 123 or 123_4
    state: str  # of PENDING, RUNNING or ENDED, or of a newer Slurm (see `is_known`)
    node: str = ""
    reason: str = ""
    comment: str = ""  # and the path of its script
    exit_code: str = ""

    @property
    def token(self) -> str | None:
        return find_token(self.comment)

    @property
    def alive(self) -> bool:
        """True while it waits or runs."""
        return self.state in PENDING or self.state in RUNNING

    @property
    def base(self) -> str:
        """Id of its array, its own id for a plain job."""
        return self.id.partition("_")[0]


def find_token(text: str) -> str | None:
    """Return the token in a job's comment or in the path of its script, None without one."""
    match = TOKEN.search(text)
    return next(filter(None, match.groups()), None) if match else None


Queue = dict[str, Job]  # by id


def available() -> bool:
    """True if there is an sbatch on this machine."""
    return shutil.which("sbatch") is not None


def belongs_to_cluster() -> bool:
    """True if this machine belongs to a cluster, even one whose controller does not answer.

    Slurm's commands may be installed without a slurm.conf.
    """
    if not available():
        return False
    try:
        run_command(["scontrol", "ping"])
    except ControllerError as error:
        return "configuration source" not in str(error)
    return True


def comment(token: str, site: str | None = None) -> str:
    """Return the comment by which a submission finds its job, appended to the comment that a site needs.

    A comment that is a JSON object stays one.
    """
    mark = f"ablatrix:{token}"
    with contextlib.suppress(ValueError):
        fields = json.loads(site or "")
        return json.dumps({**fields, "job": mark}) if isinstance(fields, dict) else f"{site} {mark}"
    return f"{site} {mark}" if site else mark


def foreign_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the variables by which a user's session would change our commands and jobs."""
    prefixes = ("SBATCH_", "SLURM_", "SQUEUE_", "SACCT_", "SCANCEL_", "SRUN_")
    return [name for name in environ if name.startswith(prefixes) and not name.startswith("SLURM_CONF")]


@contextlib.contextmanager
def own_environment() -> Iterator[None]:
    """Remove `foreign_variables` from this process's environment meanwhile."""
    hidden = {name: os.environ.pop(name) for name in foreign_variables()}
    try:
        yield
    finally:
        os.environ.update(hidden)


_CLUSTER_COMMANDS = ("squeue", "scontrol", "scancel", "sacct")


def run_command(command: Sequence[str], timeout: float = TIMEOUT, text: str = "") -> str:
    """Return the output of a Slurm command. text: its input. Raises ControllerError if it fails or does not answer."""
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
            input=text,
            env={name: value for name, value in os.environ.items() if name not in foreign},
        )
    except FileNotFoundError:
        raise ControllerError(f"{command[0]}: not found on this machine") from None
    except subprocess.TimeoutExpired as error:
        output = error.stderr.decode("utf-8", "replace") if isinstance(error.stderr, bytes) else ""
        if BUSY in output:  # refused; sbatch was waiting for its next try
            raise ControllerError(f"{command[0]}: {' '.join(output.split())[-300:]}") from None
        raise NoAnswerError(f"{command[0]} did not answer in {timeout:g} s") from None
    if result.returncode:
        words = " ".join((result.stderr or result.stdout).split())[-300:].removeprefix(f"{command[0]}: ")
        raise controller_error(f"{command[0]}: {words or f'exit code {result.returncode}'}")
    return result.stdout


def controller_error(message: str) -> ControllerError:
    """Return the error for a message of Slurm's."""
    return NoAnswerError(message) if any(known in message for known in NO_ANSWER) else ControllerError(message)


def queue(user: str = "") -> dict[str, Job]:
    """Return all jobs of a user that wait or run, by id, from one squeue. Raises ControllerError.

    user: name or number; default: this process's, because LOGNAME and USER may name another user after `su`.
    """
    users = {user} if user else own_names()
    # the comment and the path of the script come last: they may contain a bar
    form = "--format=%i|%T|%u|%N|%r|%k|%o"
    command = ["squeue", "--noheader", "--array", f"--user={user or os.getuid()}", "--states=all", form]
    return parse_squeue(run_command(command), *users)


def own_names() -> set[str]:
    """Return this user as Slurm may print it: the number, and the name if the machine knows one."""
    with contextlib.suppress(KeyError):
        return {str(os.getuid()), pwd.getpwuid(os.getuid()).pw_name}
    return {str(os.getuid())}


def parse_squeue(text: str, *users: str) -> dict[str, Job]:
    """Parse squeue's lines (id|state|user|node|reason|comment|script) to the jobs of these users, by id."""
    jobs: dict[str, Job] = {}
    for line in text.split("\n"):
        fields = line.strip().split("|", 5)
        if len(fields) < 6 or fields[2] not in users:
            continue
        state = full_state(fields[1])
        for job_id in expand(fields[0]) if state else ():
            jobs[job_id] = Job(job_id, state, node=fields[3], reason=fields[4], comment=fields[5])
    return jobs


def expand(job_id: str) -> Iterator[str]:
    """Yield the ids in `123_[0,4-9:2%3]` (123_0, 123_4, 123_6, 123_8) or in a plain id; none in any other text."""
    if _JOB_ID.fullmatch(job_id):
        yield job_id
        return
    match = _ARRAY.fullmatch(job_id)
    for part in match[2].split(",") if match else ():
        bounds = _RANGE.fullmatch(part)
        if match and bounds:
            first, last, step = int(bounds[1]), int(bounds[2] or bounds[1]), int(bounds[3] or 1)
            yield from (f"{match[1]}_{index}" for index in range(first, last + 1, max(1, step)))


def full_state(word: str) -> str:
    """Return a state in full, as Slurm may print it (`CANCELLED by 1000`, `OUT_OF_ME+`); '' if it is none."""
    word = word.strip().split(" ")[0].upper()
    if word.endswith("+") and len(word) > 1:
        stem = word[:-1]
        return next((s for s in (*ENDED, *sorted(PENDING | RUNNING)) if s.startswith(stem)), stem)
    return word if re.fullmatch(r"[A-Z_]+", word) else ""


def is_known(state: str) -> bool:
    """True if it is known what this state means for a run."""
    return state in PENDING or state in RUNNING or state in ENDED or state == VANISHED


def ended_jobs(job_ids: Iterable[str]) -> dict[str, Job]:
    """Return what Slurm still knows of jobs that left the queue. Never raises.

    One scontrol per array or job (it forgets after MinJobAge, 300 s by default), one sacct for the rest. An id that
    neither knows is left out, or VANISHED if scontrol knows its array: Slurm drops a cancelled waiting task.
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


def parse_scontrol(text: str) -> dict[str, Job]:
    """Parse `scontrol --oneliner show job` to jobs by id (array tasks as 123_4).

    An array that was cancelled before any task of it started is one record, 123_*.
    """
    jobs: dict[str, Job] = {}
    for line in text.split("\n"):
        fields = _fields(line)
        if "JobId" not in fields or not full_state(fields.get("JobState", "")):
            continue
        array, task = fields.get("ArrayJobId"), fields.get("ArrayTaskId")
        if array and task in NO_TASK:
            ids: Iterable[str] = [f"{base}_*" for base in expand(array)]
        else:
            ids = expand(f"{array}_[{task}]") if array and task else expand(fields["JobId"].split(" ")[0])
        for job_id in ids:
            jobs[job_id] = Job(
                job_id,
                full_state(fields["JobState"]),
                node=fields.get("NodeList", "").replace("(null)", ""),
                reason=fields.get("Reason", "").replace("None", ""),
                comment=f"{fields.get('Comment', '')}|{fields.get('Command', '')}",
                exit_code=fields.get("ExitCode", ""),
            )
    return jobs


def _fields(line: str) -> dict[str, str]:
    """Parse `Name=value Name=value ...`; a value may contain blanks."""
    marks = list(re.finditer(r"(?:^|(?<=\s))([A-Za-z/:]+)=", line))
    ends = [mark.start() for mark in marks[1:]] + [len(line)]
    return {mark[1]: line[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=False)}


def parse_sacct(text: str) -> dict[str, Job]:
    """Parse `sacct -n -X --parsable2 --format=JobID,State,ExitCode,NodeList[,Comment]` to jobs by id."""
    jobs: dict[str, Job] = {}
    for line in text.split("\n"):
        fields = line.strip().split("|", 4)
        state = full_state(fields[1]) if len(fields) >= 4 else ""
        for job_id in expand(fields[0]) if state else ():
            comment = fields[4] if len(fields) > 4 else ""
            jobs[job_id] = Job(job_id, state, exit_code=fields[2], node=fields[3], comment=comment)
    return jobs


def describe_wait(reason: str) -> str:
    """Return squeue's reason why a job waits, and what to do if it would wait for ever."""
    if reason in ("", "None", "(null)", "N/A"):
        return "waiting for the scheduler"
    advice = next((advice for word, advice in HELD.items() if word in reason), "")
    return f"{reason}: {advice}" if advice else reason


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
    """Return `scontrol show config` as a dict (MaxArraySize, ...); empty if another cluster does not show it.

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
    """Return the name of the cluster that is queried (see store.selected_cluster), '' if it is not known."""
    try:
        return selected_cluster.selected() or settings().get("ClusterName", "")
    except ControllerError:
        return ""
