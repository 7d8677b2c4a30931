"""Limits of a Slurm site: the sizes of arrays and scripts, and the number of jobs that a user may queue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablatrix.orchestrator.slurm import commands

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.slurm_settings import SlurmSettings

SCRIPT_BYTES = 4 << 20  # Slurm's default for max_script_size
REFUSALS = ("SubmitJob", "job submit limit", commands.BUSY, "Resource temporarily unavailable")


@dataclass(frozen=True)
class ArrayLimits:
    """Limits on one array."""

    tasks: int
    script_bytes: int = SCRIPT_BYTES


@dataclass(frozen=True)
class Room:
    """The number of further jobs that the queue accepts now; None: unknown."""

    jobs: int | None = None
    reason: str = ""


def array_limits() -> ArrayLimits:
    """Return the cluster's limits on an array. Raises ControllerError."""
    config = commands.settings()
    sizes = []
    for name, default in (("MaxArraySize", "1001"), ("MaxJobCount", "10000")):
        value = config.get(name, default)
        if not re.fullmatch(r"[0-9]{1,10}", value):
            raise commands.ControllerError(f"scontrol show config: {name} is {value[:40]!r}, not a number")
        sizes.append(int(value))
    script = re.search(r"\bmax_script_size=([0-9]{1,10})\b", config.get("SchedulerParameters", ""))
    # while an array is split, it counts as one job more than it has tasks
    return ArrayLimits(max(1, min(sizes[0], sizes[1] - 1)), int(script[1]) if script else SCRIPT_BYTES)


def is_limit(error: commands.ControllerError) -> bool:
    """True if sbatch refused a job because too many are already queued, not because of what the job requests."""
    words = str(error)
    others = re.findall(r"\b(?:QOS|Assoc)\w+", words)
    return any(known in words for known in REFUSALS) and all("SubmitJob" in other for other in others)


def find_room(settings: SlurmSettings) -> Room:
    """Return the room left by the limits of the association and of the job's and partition's QOS. Never raises."""
    try:
        found = [(limit - used, f"{name}={limit}, {used} of them in use") for name, limit, used in _limits(settings)]
    except commands.ControllerError:
        return Room()
    return Room(*min(found)) if found else Room()


def _limits(settings: SlurmSettings) -> Iterator[tuple[str, int, int]]:
    """Yield (name of a limit, its value, jobs that count towards it). Raises ControllerError."""
    user, account = sorted(commands.own_names())[-1], settings.account or ""
    partition, partition_qos = _partition(settings.partition)
    columns = "MaxSubmitJobs,GrpSubmitJobs,Account,DefaultQOS,QOS,Cluster,Partition"
    rows = show_accounting("assoc", f"user={user}", columns)
    rows = [
        row for row in rows if row["Cluster"] in ("", commands.cluster_name()) and row["Partition"] in ("", partition)
    ]
    if len({row["Account"] for row in rows}) > 1:
        account = account or next(iter(show_accounting("user", user, "DefaultAccount")), {}).get("DefaultAccount", "")
    rows = [row for row in rows if row["Account"] == account or not account]
    if not rows:
        return
    account = account or rows[0]["Account"]
    qos = settings.qos or rows[0]["DefaultQOS"] or (rows[0]["QOS"] if "," not in rows[0]["QOS"] else "")
    queue = _Usage(user)
    of_account = show_accounting("assoc", f"account={account}", "GrpSubmitJobs,User,Cluster") if account else []
    for row in rows:
        for name in ("MaxSubmitJobs", "GrpSubmitJobs"):
            if row[name]:
                yield f"{name} of your association", int(row[name]), queue.count({"account": account})
    for row in of_account:
        if row["GrpSubmitJobs"] and not row["User"]:
            used = queue.count({"account": account}, everybody=True)
            yield f"GrpSubmitJobs of account {account}", int(row["GrpSubmitJobs"]), used
    for name, where in ((qos, {"qos": qos}), (partition_qos, {"partition": partition})):
        if name:
            yield from _qos_limits(name, queue, account, where)


def _qos_limits(qos: str, queue: _Usage, account: str, where: dict[str, str]) -> Iterator[tuple[str, int, int]]:
    for row in show_accounting("qos", qos, "MaxSubmitJobsPU,MaxSubmitJobsPA,GrpSubmitJobs"):
        if row["MaxSubmitJobsPU"]:
            yield f"MaxSubmitJobsPerUser of QOS {qos}", int(row["MaxSubmitJobsPU"]), queue.count(where)
        if row["MaxSubmitJobsPA"]:
            used = queue.count({"account": account, **where}, everybody=True)
            yield f"MaxSubmitJobsPerAccount of QOS {qos}", int(row["MaxSubmitJobsPA"]), used
        if row["GrpSubmitJobs"]:
            yield f"GrpSubmitJobs of QOS {qos}", int(row["GrpSubmitJobs"]), queue.count(where, everybody=True)


class _Usage:
    """The jobs in the queue that this user may see, counted by account, QOS and partition."""

    def __init__(self, user: str) -> None:
        self.user = user
        self._read: dict[bool, list[Sequence[str]]] = {}

    def count(self, where: Mapping[str, str], everybody: bool = False) -> int:
        if everybody not in self._read:
            whose = [] if everybody else [f"--user={self.user}"]
            text = commands.run_command(["squeue", "--noheader", "--array", *whose, "--format=%a|%q|%P"])
            self._read[everybody] = [line.strip().split("|") for line in text.splitlines() if line.count("|") == 2]
        places = {"account": 0, "qos": 1, "partition": 2}
        wanted = [(places[name], value) for name, value in where.items() if value]
        return sum(all(row[place] == value for place, value in wanted) for row in self._read[everybody])


def show_accounting(what: str, which: str, columns: str) -> list[dict[str, str]]:
    """Return the rows of `sacctmgr show`; limits that are not numbers are ''. Raises ControllerError."""
    names = columns.split(",")
    text = commands.run_command(["sacctmgr", "--noheader", "--parsable2", "show", what, which, f"format={columns}"])
    rows = []
    for line in text.splitlines():
        values = [*line.split("|"), *[""] * len(names)]
        row = dict(zip(names, values, strict=False))
        rows.append({name: _limit(value) if "Submit" in name else value for name, value in row.items()})
    return rows


def _limit(text: str) -> str:
    return text if re.fullmatch(r"[0-9]{1,10}", text) else ""


def _partition(name: str | None) -> tuple[str, str]:
    """Return the partition of this name, or the default one, and its QOS; '' if unknown."""
    which = [name] if name and "," not in name else []
    try:
        text = commands.run_command(["scontrol", "--oneliner", "show", "partition", *which])
    except commands.ControllerError:
        return name or "", ""
    for line in text.splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split())
        if which or (not name and fields.get("Default") == "YES"):
            qos = fields.get("QoS", "")
            return fields.get("PartitionName", ""), "" if qos == "N/A" else qos
    return name or "", ""
