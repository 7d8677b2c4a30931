"""The processes of one run in a job: how many, on which node, and the variables that tell each its place.

One task of Slurm runs on each node and starts that node's processes; they find the first node by Slurm's variables.
Needs the standard library only, as the job's task does.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ablatrix.orchestrator.study.layout import Layout
from ablatrix.trainer.rundir import network
from ablatrix.trainer.rundir.events import slurm_job_id

FIRST_PORT, PORTS = 15_000, 16_000  # below those that systems give out by themselves
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def node_index(layout: Layout, environ: Mapping[str, str] = os.environ) -> int:
    """Which of the job's nodes this is, from 0."""
    return int(environ.get("SLURM_NODEID", "0")) if layout.nodes > 1 else 0


def environments(layout: Layout, run_dir: Path, environ: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
    """The environment of each process that this node has to start. Raises OSError where Slurm does not say where."""
    plain = {name: value for name, value in environ.items() if name not in VARIABLES}
    if layout.world == 1:
        return [plain]
    node = node_index(layout, environ)
    meeting = _meeting_point(layout, node, run_dir, environ)
    common = {**plain, **meeting, "WORLD_SIZE": str(layout.world), "LOCAL_WORLD_SIZE": str(layout.processes)}
    if "OMP_NUM_THREADS" in environ:
        common["OMP_NUM_THREADS"] = str(max(1, int(environ["OMP_NUM_THREADS"]) // layout.processes))
    places = ((node * layout.processes + i, i) for i in range(layout.processes))
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(local)} for rank, local in places]


def _meeting_point(layout: Layout, node: int, run_dir: Path, environ: Mapping[str, str]) -> dict[str, str]:
    if layout.nodes == 1:
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(network.free_port())}
    hosts = _scontrol("show", "hostnames", environ.get("SLURM_STEP_NODELIST") or environ["SLURM_JOB_NODELIST"]).split()
    start = f"{slurm_job_id(environ)}:{environ.get('SLURM_RESTART_COUNT', '0')}:{run_dir}"
    offset = int.from_bytes(hashlib.blake2b(start.encode(), digest_size=4).digest(), "big") % PORTS
    found = {"MASTER_ADDR": _address(hosts[0]), "MASTER_PORT": str(FIRST_PORT + offset)}
    # The first node's own name may mean its loopback there: it asks for the way to another one
    interface = network.interface_towards(_address(hosts[1]) if node == 0 else found["MASTER_ADDR"])
    return {**found, **({network.GLOO_INTERFACE: interface} if interface else {}), **_given(environ)}


def _given(environ: Mapping[str, str]) -> dict[str, str]:
    """What the user has set goes before what was found."""
    return {name: environ[name] for name in (network.GLOO_INTERFACE,) if name in environ}


def _address(node: str) -> str:
    """A node's name where it can be looked up, else the address that Slurm has for it."""
    if network.resolves(node):
        return node
    match = re.search(r"\bNodeAddr=(\S+)", _scontrol("show", "node", node))
    return match[1] if match else node


def _scontrol(*words: str) -> str:
    try:
        result = subprocess.run(["scontrol", *words], capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        raise OSError("scontrol does not answer") from None
    if result.returncode:
        raise OSError(f"scontrol {' '.join(words)}: {result.stderr.strip()}")
    return result.stdout
