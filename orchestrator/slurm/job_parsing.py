"""Slurm's jobs as printed by squeue, scontrol and sacct: parsers, job ids, states, and our mark on a job."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Our mark on a job: in its comment, or in the path of its script for sites that overwrite comments
TOKEN = re.compile(r"ablatrix:([0-9a-f]{16})|/([0-9a-f]{16})(?:-[a-z]+)?\.sbatch\b|/submitit/([0-9a-f]{16})/")
PENDING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
RUNNING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "STAGE_OUT", "SIGNALING", "RESIZING"}
VANISHED = "VANISHED"  # a task that has left its array, which Slurm still knows; not a state of Slurm's
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
_STATE = re.compile(r"[A-Z_]+")
_RANGE = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10})(?::([0-9]{1,10}))?)?")
LARGEST_INDEX = 4_000_000  # of an array task (MaxArraySize is at most 4,000,001)
NO_TASK = ("4294967294", "N/A")  # ArrayTaskId of a record that stands for all tasks of the array
# Reason of a job that a node could not start and that Slurm holds until it is released
LAUNCH_FAILED = "launch failed requeued held"
HELD = {
    LAUNCH_FAILED: "submit again to release it",
    "JobHeldUser": "release it by scontrol release",
    "requeued in held state": "release it by scontrol release",
    "JobHeldAdmin": "only an administrator can release it",
}


@dataclass(frozen=True)
class Job:
    """A job or array task as the scheduler sees it."""

    id: str  # 123 or 123_4
    state: str  # in PENDING, RUNNING or ENDED, or from a newer Slurm (see `is_known`)
    node: str = ""
    reason: str = ""
    comment: str = ""  # followed by the path of its script
    exit_code: str = ""

    @property
    def token(self) -> str | None:
        """The token in its comment or in the path of its script, None if there is none."""
        match = TOKEN.search(self.comment)
        return next(filter(None, match.groups()), None) if match else None

    @property
    def alive(self) -> bool:
        """True while it waits or runs."""
        return self.state in PENDING or self.state in RUNNING

    @property
    def hold(self) -> str:
        """Why Slurm holds it, and how to release it; '' if it is not held."""
        return describe_wait(self.reason) if _advice(self.reason) and self.state in PENDING else ""

    @property
    def base(self) -> str:
        """The id of its array, or its own id for a plain job."""
        return self.id.partition("_")[0]


def parse_squeue(text: str, *users: str) -> dict[str, Job]:
    """Parse squeue's lines (id|state|user|node|reason|comment|script) into the jobs of these users, by id."""
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
    """Yield the ids in `123_[0,4-9:2%3]` (123_0, 123_4, 123_6, 123_8) or a plain id; nothing for any other text."""
    if _JOB_ID.fullmatch(job_id):
        yield job_id
        return
    match = _ARRAY.fullmatch(job_id)
    for part in match[2].split(",") if match else ():
        bounds = _RANGE.fullmatch(part)
        if match and bounds:
            first, last, step = int(bounds[1]), int(bounds[2] or bounds[1]), int(bounds[3] or 1)
            last = min(last, LARGEST_INDEX)
            yield from (f"{match[1]}_{index}" for index in range(first, last + 1, max(1, step)))


def full_state(word: str) -> str:
    """Return a state without what Slurm may append to it (`CANCELLED by 1000`); '' if the text is not a state."""
    word = word.strip().split(" ")[0].upper()
    return word if _STATE.fullmatch(word) else ""


def is_known(state: str) -> bool:
    """True if the state's meaning for a run is known."""
    return state in PENDING or state in RUNNING or state in ENDED or state == VANISHED


def parse_scontrol(text: str) -> dict[str, Job]:
    """Parse `scontrol --oneliner show job` into jobs by id (array tasks as 123_4).

    An array that was cancelled before any of its tasks started is one record, 123_*.
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
    """Parse `Name=value Name=value ...`; a value may contain spaces."""
    marks = list(re.finditer(r"(?:^|(?<=\s))([A-Za-z/:]+)=", line))
    ends = [mark.start() for mark in marks[1:]] + [len(line)]
    return {mark[1]: line[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=False)}


def parse_sacct(text: str) -> dict[str, Job]:
    """Parse `sacct -n -X --parsable2 --format=JobID,State,ExitCode,NodeList[,Comment]` into jobs by id."""
    jobs: dict[str, Job] = {}
    for line in text.split("\n"):
        fields = line.strip().split("|", 4)
        state = full_state(fields[1]) if len(fields) >= 4 else ""
        for job_id in expand(fields[0]) if state else ():
            comment = fields[4] if len(fields) > 4 else ""
            jobs[job_id] = Job(job_id, state, exit_code=fields[2], node=fields[3], comment=comment)
    return jobs


def describe_wait(reason: str) -> str:
    """Return squeue's reason why a job waits, and what to do if it would wait forever."""
    if reason in ("", "None", "(null)", "N/A"):
        return "waiting for the scheduler"
    advice = _advice(reason)
    return f"{reason}: {advice}" if advice else reason


def _advice(reason: str) -> str:
    """Return how to release a job held for this reason, '' if it is not held."""
    return next((advice for word, advice in HELD.items() if word in reason), "")


def comment(token: str, site: str | None = None) -> str:
    """Return the comment by which a submission finds its job, appended to the comment that a site needs.

    If the site's comment is a JSON object, the result is one too.
    """
    mark = f"ablatrix:{token}"
    with contextlib.suppress(ValueError):
        fields = json.loads(site or "")
        return json.dumps({**fields, "job": mark}) if isinstance(fields, dict) else f"{site} {mark}"
    return f"{site} {mark}" if site else mark
