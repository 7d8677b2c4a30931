"""Options of sbatch as written in YAML: spellings, units, switches, and the options that Ablatrix sets itself."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

from ablatrix.orchestrator.study.literals import text_of, whole_number

SHORT = {
    **{"a": "array", "A": "account", "b": "begin", "B": "extra-node-info", "c": "cpus-per-task", "C": "constraint"},
    **{"d": "dependency", "D": "chdir", "e": "error", "F": "nodefile", "G": "gpus", "h": "help", "H": "hold"},
    **{"i": "input", "J": "job-name", "k": "no-kill", "L": "licenses", "m": "distribution", "M": "clusters"},
    **{"n": "ntasks", "N": "nodes", "o": "output", "O": "overcommit", "p": "partition", "q": "qos", "Q": "quiet"},
    **{"s": "oversubscribe", "S": "core-spec", "t": "time", "v": "verbose", "V": "version", "w": "nodelist"},
    **{"W": "wait", "x": "exclude"},
}
OLD = {"share": "oversubscribe", "workdir": "chdir", "cluster": "clusters"}
_LOGS = "logs go to the study's folder"
_STARTS = "one task starts on each node; slurm.processes_per_node says how many processes share a run there"
_ANSWER = "the job's id is read from what sbatch prints"
OWN = {  # name -> why it must not be given
    "array": "each run is a task of it; slurm.max_parallel limits how many run at once",
    "chdir": "jobs run in the folder that submit is called from",
    "dependency": "the report waits for the runs by it",
    **dict.fromkeys(("error", "input", "open-mode", "output"), _LOGS),
    **dict.fromkeys(("export", "export-file", "get-user-env"), "use `export:` at the top level of the file"),
    "job-name": "it is the study's name",
    **dict.fromkeys(("ntasks", "ntasks-per-node"), _STARTS),
    "signal": "use slurm.signal_seconds",
    **dict.fromkeys(("parsable", "quiet", "verbose"), _ANSWER),
    **dict.fromkeys(("help", "test-only", "usage", "version"), "with it nothing would be queued"),
    "wait": "use `submit --wait`",
    "wrap": "the job script is Ablatrix's",
}
SWITCHES = {  # options without a value
    *("contiguous", "hold", "ignore-pbs", "overcommit", "oversubscribe", "reboot", "spread-job", "use-min-nodes"),
}
VALUED = {
    *("acctg-freq", "bb", "bbf", "begin", "cluster-constraint", "container", "core-spec", "cores-per-socket"),
    *("cpu-freq", "cpus-per-gpu", "deadline", "delay-boot", "distribution", "extra-node-info", "gid", "gpu-bind"),
    *("gpu-freq", "gpus", "gpus-per-socket", "gpus-per-task", "gres", "gres-flags", "hint", "licenses", "mail-type"),
    *("mail-user", "mcs-label", "mem-per-cpu", "mem-per-gpu", "mincpus", "network", "nodefile", "nodelist"),
    *("ntasks-per-core", "ntasks-per-gpu", "ntasks-per-socket", "power", "prefer", "priority", "profile"),
    *("reservation", "sockets-per-node", "switches", "thread-spec", "threads-per-core", "time-min", "tmp", "uid"),
    *("tres-per-node", "tres-per-task", "wait-all-nodes", "wckey"),
}
OPTIONAL = {"exclusive", "nice", "no-kill", "propagate", "x11"}  # with a value or without
SIZES = ("mem", "mem-per-cpu", "mem-per-gpu", "tmp")
NODES = "node configuration is not available"
REFUSALS = {  # part of sbatch's message -> what to do
    "comment": "set slurm.comment",
    "requeue": "set slurm.requeue: false",
    "invalid partition": "set slurm.partition to one that `sinfo -s` lists",
    "invalid account": "set slurm.account to one of yours (sacctmgr show assoc user=$USER format=account)",
    "invalid qos": "set slurm.qos to one that your account may use (sacctmgr show assoc user=$USER format=account,qos)",
    NODES: "no node has the memory, cores, GPUs or features that slurm asks for",
}
QUOTES = "write it in quotes"
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_VALUE = re.compile(r"[A-Za-z0-9._+:,=@%/&|*\[\]()!~-]{1,500}")
_CLUSTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
_GPUS = re.compile(r"[A-Za-z][A-Za-z0-9._-]*(?::[0-9]{1,4})?(?:,[A-Za-z][A-Za-z0-9._-]*(?::[0-9]{1,4})?)*")
_MEMORY = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([KMGT]?)(i?B)?", re.IGNORECASE)


def long_name(name: str) -> str:
    """Return sbatch's long name of an option written as `p`, `-p`, `--mail-type` or `mail_type`."""
    bare = name.strip().lstrip("-")
    bare = SHORT.get(bare, bare).replace("_", "-")
    return OLD.get(bare, bare)


def advice(message: str) -> str:
    """Return a clause that names the setting to change after an sbatch error, '' if none helps."""
    return next((f"; {todo}" for words, todo in REFUSALS.items() if words in message.lower()), "")


def find_place(key: str, fields: Container[str]) -> str:
    """Return where an sbatch option given under `slurm:` belongs; '' for any other key."""
    name = long_name(key)
    if name in OWN:
        return f"; it is set by Ablatrix itself: {OWN[name]}"
    field = "gpus_per_node" if name in ("gpus", "gres") else name.replace("-", "_")
    if field in fields:
        return f" (did you mean {field}?)"
    return "; other sbatch options go under slurm.extra" if name in SWITCHES | VALUED | OPTIONAL else ""


def named(key: str, value: Any, fields: Container[str]) -> tuple[str, Any]:
    """Return an option as a setting of `slurm:` with its value; the option itself if there is no such setting."""
    name = long_name(key)
    if name == "no-requeue":
        switch = as_switch(value)
        return "requeue", (not switch if isinstance(switch, bool) else value)
    field = name.replace("-", "_")
    if field not in fields or field in ("setup", "extra", "helper_jobs"):
        return key, value
    return field, value


def refuse_twice(keys: Iterable[str]) -> None:
    """Raise ValueError if an option is given in two spellings."""
    first: dict[str, str] = {}
    for key in keys:
        other = first.setdefault(long_name(key), key)
        if other != key:
            raise ValueError(f"extra: {other} and {key} are the same option; keep one of them")


def checked_name(key: str) -> str:
    """Return the long name of an option under `slurm.extra`. Raise ValueError for one that must not be given."""
    name = long_name(key)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,79}", name):
        raise ValueError("not the name of an sbatch option")
    if name in OWN:
        raise ValueError(f"set by Ablatrix itself, cannot be given under slurm.extra: {OWN[name]}")
    if name in _SETTINGS:
        raise ValueError(f"given as slurm.{name.replace('-', '_')} too; keep one of them")
    # sbatch accepts prefixes of options: `outp` would be a second --output
    whole = next((own for own in (*OWN, *_SETTINGS) if own.startswith(name)), None)
    if whole and name not in VALUED | SWITCHES:
        raise ValueError(f"sbatch would read it as --{whole}, which is set by Ablatrix itself; write the whole name")
    return name


def checked_helper_name(key: str) -> str:
    """Return the long name of an option under `slurm.helper_jobs`, which may also be a resource."""
    name = long_name(key)
    return name if name in _RESOURCES else checked_name(key)


# Options that are settings under `slurm:`, by sbatch's names
_SETTINGS = (
    *("partition", "account", "qos", "constraint", "exclude", "nodes", "gpus-per-node", "cpus-per-task", "mem"),
    *("time", "comment", "requeue", "no-requeue", "clusters"),
)


_RESOURCES = {*_SETTINGS[:10], "ntasks", "ntasks-per-node"}


def checked(extra: Mapping[str, str | bool]) -> dict[str, str | bool]:
    """Return the options that are set, with True for those without a value. Raise ValueError."""
    given: dict[str, str | bool] = {}
    for name, value in extra.items():
        if name not in VALUED:
            switch = as_switch(value)
            if name in SWITCHES and not isinstance(switch, bool):
                raise ValueError(f"{name} takes no value; write `{name}: true`")
            value = switch if name in SWITCHES or name in ("exclusive", "no-kill") else value
        elif value is True:
            raise ValueError(f"{name} needs a value")
        if value is not False:
            given[name] = as_memory(value) if name in SIZES else value
    return given


def as_value(value: Any) -> str | bool:
    """Return the value of an option under `slurm.extra`: a word, True for a switch, False if it is not set."""
    return bool(value) if value is None or isinstance(value, bool) else as_word(value)


def as_word(value: Any) -> str:
    """Return a value as one printable word without quotes, spaces or shell characters. Raise ValueError."""
    if isinstance(value, list):
        return ",".join(map(as_word, value))
    text = as_text(value)
    negative = re.fullmatch(r"-[0-9]+", text)
    if not negative and (not _VALUE.fullmatch(text) or text.startswith("-")):
        raise ValueError("characters that are not safe in an sbatch option (blanks, quotes, $, ; ...)")
    return text


def as_text(value: Any) -> str:
    """Return a string, or an integer as a string. Raise ValueError for a value whose spelling YAML has changed."""
    if isinstance(value, bool):
        raise ValueError(f"a boolean in YAML; {QUOTES} if it is a name")
    if isinstance(value, float):
        raise ValueError(f"a number in YAML, which may lose its spelling; {QUOTES}")
    if not isinstance(value, str | int):
        raise ValueError("must be a string or a whole number")
    return text_of(value)


def as_count(value: Any) -> Any:
    """Return an integer that is written as a string (`"4"`) as a number."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()) else whole_number(value)


def as_switch(value: Any) -> Any:
    """Return yes, no, on and off, which are strings in YAML 1.2, as booleans."""
    return _WORDS.get(value.lower(), value) if isinstance(value, str) else value


def as_lines(value: Any) -> Any:
    """Return shell lines given as one string (`setup: |`) as a list."""
    return value.splitlines() if isinstance(value, str) else value


def as_memory(value: Any) -> str:
    """Return an amount of memory in Slurm's form: `16GB`, `16 GiB` and `16g` are 16G, `1.5G` is 1536M.

    Raise ValueError.
    """
    if isinstance(value, float):
        raise ValueError("no unit; write it like `1.5G`")
    match = _MEMORY.fullmatch(as_text(value).strip())
    if not match:
        raise ValueError("not an amount of memory; write it like `16G` or `500M`")
    number, unit = match[1], match[2].upper()
    if "." not in number:
        return number + unit
    if not unit:
        raise ValueError("no unit; write it like `1.5G`")
    smaller = {"K": ("K", 1), "M": ("K", 1024), "G": ("M", 1024), "T": ("G", 1024)}[unit]
    return f"{math.ceil(float(number) * smaller[1])}{smaller[0]}"


def mebibytes(memory: str) -> float:
    """Return an amount in Slurm's form (`500M`, `16G`, see `as_memory`) in MiB, 0 for any other string."""
    match = re.fullmatch(r"([0-9]+)([KMGT]?)", memory)
    return int(match[1]) * {"K": 2**-10, "M": 1, "": 1, "G": 2**10, "T": 2**20}[match[2]] if match else 0


def minutes(time: str) -> int:
    """Return a Slurm time (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in minutes, rounded up. Raise ValueError."""
    match = re.fullmatch(r"(?:([0-9]{1,9})-)?([0-9]{1,9})(?::([0-9]{1,9}))?(?::([0-9]{1,9}))?", time)
    if not match:
        raise ValueError("not a Slurm time; write HH:MM:SS or D-HH:MM:SS, in quotes")
    days, first, second, third = match.groups()
    numbers = [int(n) for n in (first, second, third) if n is not None]
    if days is None and len(numbers) < 3:
        numbers.insert(0, 0)  # M or M:S
    hours, mins, secs = [*numbers, 0, 0][:3]
    total = ((int(days or 0) * 24 + hours) * 60 + mins) * 60 + secs
    if total <= 0:
        raise ValueError("the time limit must be more than 0")
    return -(-total // 60)


def as_time(value: Any) -> str:
    """Return a time limit in Slurm's form; a number is in minutes. Raise ValueError."""
    time = as_text(value).strip()
    minutes(time)
    return time


def as_comment(value: Any) -> str:
    """Return a job comment, one line of printable text without backslashes. Raise ValueError."""
    text = as_text(value).strip()
    if not text or len(text) > 1000 or not (text.isascii() and text.isprintable()) or "\\" in text or "'" in text:
        raise ValueError("must be one line of ASCII without backslashes and single quotes")
    if "ablatrix:" in text:
        raise ValueError("`ablatrix:` marks the jobs of Ablatrix; leave it out")
    return text


def as_cluster(value: Any) -> str:
    """Return the name of a cluster. Raise ValueError for several: each job's cluster must be known."""
    text = as_text(value).strip() if isinstance(value, str | int) else ""
    if not _CLUSTER.fullmatch(text) or text == "all":
        raise ValueError("must be one cluster of `sacctmgr show clusters`")
    return text


def cluster_of_shell() -> str | None:
    """Return the cluster in SLURM_CLUSTERS, None for this machine's own."""
    name = os.environ.get("SLURM_CLUSTERS", "")
    return name if _CLUSTER.fullmatch(name) and name != "all" else None


def as_gpus(value: Any) -> int | str:
    """Return a GPU request: a number, or types and numbers as in `a100:2`. Raise ValueError."""
    text = str(value).strip().removeprefix("gpu:") if isinstance(value, str) else value
    if isinstance(text, str) and not text.isdecimal():
        if not _GPUS.fullmatch(text):
            raise ValueError('must be a number of GPUs, or types and numbers such as "a100:2"')
        return text
    if isinstance(text, bool) or not isinstance(text, str | int) or int(text) < 0:
        raise ValueError('must be a number of GPUs, or types and numbers such as "a100:2"')
    return int(text)


def count_gpus(request: int | str) -> int:
    """Return the number of GPUs in `2`, `a100:2` or `a100:2,v100:1`; a type without a number counts as one."""
    if isinstance(request, int):
        return request
    last = [part.rpartition(":")[2] for part in request.split(",")]
    return sum(int(word) if word.isdecimal() else 1 for word in last)


def gpus_in(extra: Mapping[str, str | bool], nodes: int) -> int:
    """Return how many GPUs per node other options request: `gres`, `gpus`, `gpus-per-task`, `tres-per-*`."""
    found = [gpus_of_gres(str(extra.get(name, ""))) for name in ("gres", "tres-per-node", "tres-per-task")]
    if isinstance(extra.get("gpus"), str):
        found.append(-(-count_gpus(str(extra["gpus"])) // nodes))
    for name in ("gpus-per-task", "gpus-per-socket"):
        if isinstance(extra.get(name), str):
            found.append(count_gpus(str(extra[name])))
    return max(found, default=0)


def gpus_of_gres(request: str) -> int:
    """Return the GPUs of `gpu`, `gpu:2`, `gpu:a100:2(S:0-1),tmpfs:10G`, `gres/gpu:2` or `gres/gpu=2`."""
    words = re.sub(r"\([^)]*\)", "", request).replace("gres/", "").replace("=", ":").split(",")
    counts = [word.partition(":")[2] or "1" for word in words if word.partition(":")[0] == "gpu"]
    return sum(map(count_gpus, counts))
