"""Environment variables of a job's processes for torch.distributed: rank, world size, address of the first node.

One Slurm task runs on each node and starts that node's processes. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.trainer.rundir import network
from ablatrix.trainer.rundir.events import slurm_job_id

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.node_layout import Layout

FIRST_PORT, PORTS = 15_000, 16_000  # below the usual range of ephemeral ports
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def node_index(layout: Layout, environ: Mapping[str, str] = os.environ) -> int:
    """Return the index of this node in the job, from 0."""
    return int(environ.get("SLURM_NODEID", "0")) if layout.nodes > 1 else 0


def environments(layout: Layout, run_dir: Path, environ: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
    """Return the environment of each process on this node. Raises OSError if Slurm does not list the nodes."""
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
    hosts = scontrol("show", "hostnames", environ.get("SLURM_STEP_NODELIST") or environ["SLURM_JOB_NODELIST"]).split()
    start = f"{slurm_job_id(environ)}:{environ.get('SLURM_RESTART_COUNT', '0')}:{run_dir}"
    offset = int.from_bytes(hashlib.blake2b(start.encode(), digest_size=4).digest(), "big") % PORTS
    found = {"MASTER_ADDR": _address(hosts[0]), "MASTER_PORT": str(FIRST_PORT + offset)}
    # the first node's own name may resolve to loopback there, so it uses the route to another node
    peer = _address(hosts[1]) if node == 0 else found["MASTER_ADDR"]
    interface = environ.get(network.GLOO_INTERFACE) or network.interface_towards(peer)
    return {**found, **({network.GLOO_INTERFACE: interface} if interface else {})}


def _address(node: str) -> str:
    """Return a node's name if it resolves, else its address in Slurm's configuration."""
    if network.resolves(node):
        return node
    match = re.search(r"\bNodeAddr=(\S+)", scontrol("show", "node", node))
    return match[1] if match else node


def scontrol(*words: str) -> str:
    """Return the output of scontrol. Raises OSError if it fails or does not answer."""
    try:
        result = subprocess.run(["scontrol", *words], capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        raise OSError("scontrol does not answer") from None
    if result.returncode:
        raise OSError(f"scontrol {' '.join(words)}: {result.stderr.strip()}")
    return result.stdout
