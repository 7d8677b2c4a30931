"""The profile of a Slurm site, for `init --site`: partitions, GPU types, limits, account."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.slurm.site_limits import show_accounting
from ablatrix.orchestrator.study.sbatch_options import gpus_of_gres, minutes

FORMAT = "%P|%a|%l|%D|%c|%m|%G"  # partition (* for the default), up, time limit, nodes, cores, MiB, GRES
_SHORT = re.compile(r"debug|devel|test|short|interactive|express", re.IGNORECASE)
_GPU = re.compile(r"gpu:(?:([A-Za-z][\w.-]*):)?[0-9]+")


@dataclass(frozen=True)
class NodeType:
    """Identical nodes of a partition. memory: MiB; gpu_type: '' if the site does not name it."""

    nodes: int
    cores: int
    memory: int
    gpus: int = 0
    gpu_type: str = ""


@dataclass(frozen=True)
class Partition:
    """A partition that accepts jobs. limit: time limit of a job in Slurm's format, '' for none."""

    name: str
    default: bool
    limit: str
    kinds: tuple[NodeType, ...]

    @property
    def largest(self) -> NodeType:
        """The most numerous kind of node, among those with GPUs if there are any."""
        return max(self.kinds, key=lambda kind: (kind.gpus > 0, kind.nodes))


@dataclass(frozen=True)
class Site:
    """A cluster as one user sees it. account: '' if jobs need none or it is unknown."""

    cluster: str
    version: str
    partitions: tuple[Partition, ...]
    account: str = ""
    accounts: tuple[str, ...] = ()
    array_tasks: int | None = None

    @property
    def chosen(self) -> Partition:
        """The partition to train on: with GPUs if any has them, not one for short tests, preferably the default."""
        return max(
            self.partitions,
            key=lambda p: (p.largest.gpus > 0, not _SHORT.search(p.name), p.default, p.largest.nodes),
        )

    @property
    def without_gpus(self) -> Partition | None:
        """A partition for small jobs: the default if it has no GPUs, else the first without GPUs."""
        found = [p for p in self.partitions if not p.largest.gpus]
        return next((p for p in found if p.default), found[0] if found else None)


def find_site() -> Site:
    """Query Slurm for the site's profile. Raises ControllerError if sinfo does not answer or shows no partition."""
    partitions = parse_sinfo(commands.run_command(["sinfo", "--noheader", "--exact", f"--format={FORMAT}"]))
    if not partitions:
        raise commands.ControllerError("sinfo shows no partition that accepts jobs")
    config: dict[str, str] = {}
    with contextlib.suppress(commands.ControllerError):
        config = commands.settings()
    default, accounts = _find_accounts()
    size = config.get("MaxArraySize", "")
    return Site(
        cluster=config.get("ClusterName", ""),
        version=config.get("SLURM_VERSION", ""),
        partitions=partitions,
        account=default or (accounts[0] if len(accounts) == 1 else ""),
        accounts=accounts,
        array_tasks=int(size) if size.isdecimal() else None,
    )


def parse_sinfo(text: str) -> tuple[Partition, ...]:
    """Return the partitions that accept jobs, in the order of the output of sinfo with FORMAT."""
    kinds: dict[str, list[NodeType]] = {}
    heads: dict[str, tuple[bool, str]] = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) != 7 or fields[1].rstrip("*") != "up":
            continue
        name, _, limit, nodes, cores, memory, gres = fields
        heads[name.rstrip("*")] = (name.endswith("*"), _parse_limit(limit))
        kind = NodeType(_number(nodes), _number(cores), _number(memory), gpus_of_gres(gres), _gpu_type(gres))
        kinds.setdefault(name.rstrip("*"), []).append(kind)
    return tuple(Partition(name, *head, tuple(kinds[name])) for name, head in heads.items())


def _find_accounts() -> tuple[str, tuple[str, ...]]:
    """Return the user's default account and all accounts, '' and () on a cluster without accounting."""
    user = sorted(commands.own_names())[-1]
    default = _list_accounts("user", user, "DefaultAccount")
    accounts = _list_accounts("assoc", f"user={user}", "Account")
    return default[0] if default else "", accounts


def _list_accounts(what: str, which: str, column: str) -> tuple[str, ...]:
    """Return the distinct values in a column of `sacctmgr show`; () on a cluster without accounting."""
    with contextlib.suppress(commands.ControllerError):
        return tuple(dict.fromkeys(filter(None, (row[column] for row in show_accounting(what, which, column)))))
    return ()


def _parse_limit(text: str) -> str:
    """Return a time limit as sinfo prints it; '' for `infinite` and for anything that is not a time."""
    try:
        minutes(text)
    except ValueError:
        return ""
    return text


def _number(text: str) -> int:
    """Return the number in `64` or `64+`, where nodes differ and 64 is the smallest."""
    found = re.match(r"[0-9]+", text)
    return int(found[0]) if found else 0


def _gpu_type(gres: str) -> str:
    """Return `a100` for `gpu:a100:4(S:0-1)`, '' if there is no type or more than one."""
    types = set(_GPU.findall(gres)) - {""}
    return types.pop() if len(types) == 1 else ""
