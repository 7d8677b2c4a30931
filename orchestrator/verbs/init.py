"""The verb `init`: create a small workspace in a new folder, or a Slurm site's profile for experiment files."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.slurm import commands, site_profile
from ablatrix.orchestrator.study import json_schema
from ablatrix.orchestrator.study.sbatch_options import minutes
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.errors import UserError
from ablatrix.trainer.rundir.program import PACKAGE, program

if TYPE_CHECKING:
    from ablatrix.orchestrator.slurm.site_profile import NodeType, Partition, Site

SITE = "site.yaml"
MOST_MINUTES = 240  # time limit of a run, unless the partition allows less
MOST_CORES, MOST_MEMORY = 8, 32 << 10  # of a run (memory in MiB), unless a GPU's share of its node is less
TEMPLATES = Path(PACKAGE) / "orchestrator" / "workspace"
RENAMED = {"gitignore": ".gitignore"}  # under its final name it would hide files of this package from git


def init(folder: Path) -> None:
    """Write a workspace (see `create_workspace`) and print its files and what to do next."""
    for path in create_workspace(folder):
        print(path)
    verb = program(relative=False)
    print(
        f"\nnext: cd {shlex.quote(str(folder))}\n"
        f"      {verb} warm-cache --tokenizer sample     # a tokenizer and a small corpus, made here, no network\n"
        f"      {verb} submit ablation.yaml --wait && {verb} report"
    )


def create_workspace(folder: Path) -> list[Path]:
    """Write the workspace and return its files. Raises UserError if the folder is not empty; replaces nothing.

    Hidden entries that are not the workspace's (.git, .venv) are allowed.
    """
    files = workspace_files()
    try:
        taken = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") or p.name in files)
    except FileNotFoundError:
        taken = []
    except OSError as error:
        raise UserError(f"cannot create a workspace in {folder}: {error.strerror}; choose another folder") from None
    if taken:
        shown = ", ".join(taken[:5]) + (", ..." if len(taken) > 5 else "")
        raise UserError(f"{folder} is not empty ({shown}); choose a new folder (nothing was changed)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise UserError(f"cannot write to {error.filename or folder}: {error.strerror}") from None
    return [folder / name for name in files]


def workspace_files() -> dict[str, str]:
    """Return name -> content of each file of a new workspace."""
    found = {RENAMED.get(path.name, path.name): path.read_text("utf-8") for path in sorted(TEMPLATES.iterdir())}
    found["Makefile"] = found["Makefile"].replace("@PROGRAM@", program(relative=False))
    return found | {json_schema.FILE: json_schema.text()}


def init_site(folder: Path) -> None:
    """Write `site.yaml` into a folder, and print what was chosen and what to do next.

    Raises UserError if the file exists or cannot be written, ControllerError if Slurm does not answer.
    """
    if not commands.belongs_to_cluster():
        raise UserError("init --site: this machine belongs to no Slurm cluster; run it on the cluster's login node")
    site, path = site_profile.find_site(), folder / SITE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(site_text(site))
    except FileExistsError:
        raise UserError(f"{path} already exists; remove it, or choose another folder") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    print(path)
    print(f"partition {site.chosen.name}; {SITE} lists the others; now add `extends: {SITE}` to the experiment file")


def site_text(site: Site) -> str:
    """Return a base file with the `slurm:` section for a site; comments list what else the site offers."""
    chosen = site.chosen
    name = f"cluster {site.cluster}" if site.cluster else "this cluster"
    version = f" (Slurm {site.version})" if site.version else ""
    accounts = f"# your accounts: {', '.join(site.accounts)}" if len(site.accounts) > 1 else ""
    arrays = (
        f"# largest array: {site.array_tasks} tasks; larger studies are queued in waves" if site.array_tasks else ""
    )
    lines = [
        f"# {name}{version}, as `ablatrix init --site` found it. In an experiment file: extends: {SITE}",
        "# partitions (* the default):",
        *(f"#   {_describe_partition(partition)}" for partition in site.partitions),
        *filter(None, (accounts, arrays)),
        "slurm:",
        f"  partition: {_quote(chosen.name)}",
        *([f"  account: {_quote(site.account)}"] if site.account else []),
        *_describe_share(chosen),
    ]
    helpers = site.without_gpus
    if chosen.largest.gpus and helpers:
        lines.append(f"  helper_jobs: {{partition: {_quote(helpers.name)}}}  # the report, without a GPU")
    return "\n".join(lines) + "\n"


def _describe_share(partition: Partition) -> Iterator[str]:
    """Yield the settings of one run: a GPU if there are any, its share of a node, and a permitted time limit."""
    kind = partition.largest
    if kind.gpus:
        gpus = f"{kind.gpu_type}:1" if kind.gpu_type else "1"
        yield f"  gpus_per_node: {gpus}  # leave it out for jobs that need no GPU"
    shares = max(1, kind.gpus)
    if kind.cores:
        yield f"  cpus_per_task: {max(1, min(MOST_CORES, kind.cores // shares))}"
    if kind.memory:
        memory = min(MOST_MEMORY, int(0.95 * kind.memory) // shares)  # the system needs some of it
        yield f"  mem: {max(1, memory)}M"
    limit = minutes(partition.limit) if partition.limit else MOST_MINUTES
    hours, rest = divmod(min(MOST_MINUTES, limit), 60)
    yield f'  time: "{hours:02d}:{rest:02d}:00"'


def _describe_partition(partition: Partition) -> str:
    star, limit = "*" if partition.default else "", partition.limit or "no limit"
    return f"{partition.name}{star}: up to {limit}; {', '.join(map(_describe_nodes, partition.kinds))}"


def _describe_nodes(kind: NodeType) -> str:
    gpus = f", {kind.gpus} x {kind.gpu_type or 'GPU'}" if kind.gpus else ""
    return f"{count(kind.nodes, 'node')} ({kind.cores} cores, {kind.memory / 1024:.0f} GiB{gpus})"


def _quote(word: str) -> str:
    """Quote a string for YAML if it would otherwise be read as another type."""
    plain = re.fullmatch(r"[A-Za-z][\w.-]*", word) and word.lower() not in ("true", "false", "null")
    return word if plain else json.dumps(word)
