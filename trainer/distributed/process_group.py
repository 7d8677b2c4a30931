"""The process group of one run: rendezvous, and communication other than gradients."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ablatrix.trainer.device import pick_device
from ablatrix.trainer.distributed.rank_info import PeerLostError, RankInfo, describe_lost_peer, is_lost_peer
from ablatrix.trainer.rundir import network
from ablatrix.trainer.rundir.errors import UserError

if TYPE_CHECKING:
    from ablatrix.trainer.config import RunConfig
    from ablatrix.trainer.distributed.single import Array

START_SECONDS = 600.0  # time for all processes to connect
PEER_TIMEOUT_SECONDS = 1800.0  # longest time without an answer from a connected process
LAST_WAIT_SECONDS = 30.0  # time that rank 0 waits for the others to read its last message
POLL_SECONDS = 0.05


class ProcessGroup:
    """The connected processes of a run. Messages go through a store hosted by rank 0."""

    def __init__(self, ranks: RankInfo, device: torch.device, store: dist.Store) -> None:
        self.ranks, self.device, self.store = ranks, device, store
        self.rank, self.world = ranks.rank, ranks.world

    @classmethod
    def join(cls, ranks: RankInfo, config: RunConfig) -> ProcessGroup:
        """Connect to the other processes. Raises UserError (no device) or PeerLostError (a process does not start)."""
        device = local_device(config.trainer.device, ranks.local_rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        _choose_interface(ranks)
        deadline = time.monotonic() + START_SECONDS
        store = _open_store(ranks, deadline)
        store.add("here", 1)
        # torch would block without handling signals
        while store.add("here", 0) < ranks.world:
            _pause(deadline, f"{ranks.world - store.add('here', 0)} of {ranks.world} processes have not started")
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=store,
            rank=ranks.rank,
            world_size=ranks.world,
            timeout=timedelta(seconds=PEER_TIMEOUT_SECONDS),
        )
        return cls(ranks, device, store)

    def leave(self) -> None:
        """Disconnect at the end of the run."""
        dist.destroy_process_group()

    # ---- messages

    def broadcast(self, key: str, value: Any) -> None:
        """Send a value from rank 0 to all others, once per key."""
        self.store.set(key, json.dumps(value))

    def broadcast_last(self, key: str, value: Any) -> None:
        """Send the last message from rank 0 and wait for all ranks to read it, because the store ends with rank 0."""
        self.broadcast(key, value)
        deadline = time.monotonic() + LAST_WAIT_SECONDS
        with contextlib.suppress(RuntimeError):
            while self.store.add(f"{key}/received", 0) < self.world - 1 and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)

    def receive(self, key: str) -> Any:
        """Wait for rank 0 to broadcast a value, however long it takes: rank 0 may have to tokenize a corpus."""
        with naming_lost_peers():
            while not self.store.check([key]):
                time.sleep(POLL_SECONDS)
            value = json.loads(self.store.get(key))
            self.store.add(f"{key}/received", 1)
            return value

    # ---- numbers

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return, for each flag, whether any process has raised it."""
        values = torch.tensor([int(flag) for flag in flags])
        with naming_lost_peers():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return tuple(bool(value) for value in values.tolist())

    def sum(self, values: Array) -> Array:
        """Return the sum of an array over all processes."""
        total = torch.from_numpy(values.copy())
        with naming_lost_peers():
            dist.all_reduce(total)
        return total.numpy()

    def start_all_reduce(self, tensor: Tensor) -> Any:
        """Start replacing the tensor with its sum over all processes; call `wait` on the returned handle."""
        with naming_lost_peers():
            return dist.all_reduce(tensor, async_op=True)

    def wait(self, work: Any) -> None:
        with naming_lost_peers():
            work.wait()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes on rank 0, [] on the others. Tensors should be on the CPU."""
        found: list[Any] | None = [None] * self.world if self.rank == 0 else None
        with naming_lost_peers():
            dist.gather_object(value, found)
        return found or []


@contextlib.contextmanager
def naming_lost_peers() -> Iterator[None]:
    """Raise PeerLostError if a connection breaks inside the `with` block."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise describe_lost_peer(error) from error


def local_device(name: str, local_rank: int) -> torch.device:
    """Return the device for process `local_rank` of this machine. Raises UserError if there are too few."""
    device = pick_device("cpu" if name == "auto" and not torch.cuda.is_available() else name)
    if device.type == "mps":
        raise UserError("trainer.device: several processes cannot share an mps device; use cpu")
    if device.type != "cuda" or device.index is not None:
        return device
    count = torch.cuda.device_count()
    if local_rank >= count > 1:
        raise UserError(f"process {local_rank + 1} of this machine finds only {count} GPUs; start one process per GPU")
    return torch.device("cuda", local_rank if count > 1 else 0)  # a scheduler may show each process only its own GPU


def _open_store(ranks: RankInfo, deadline: float) -> dist.Store:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdigit():
        raise UserError("MASTER_ADDR and MASTER_PORT are not set: start the processes with torchrun")
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun hosts the store
    keeps_store = ranks.rank == 0 and not agents
    while True:
        try:
            store = dist.TCPStore(
                host, int(port), is_master=keeps_store, wait_for_workers=False, timeout=timedelta(seconds=5),
                master_listen_fd=network.listen(host, int(port), _is_hidden(host, ranks)) if keeps_store else None,
            )  # fmt: skip
            break
        except (RuntimeError, OSError) as error:
            reason = (
                f"{host}:{port} cannot be {'used' if keeps_store else 'reached'} ({str(error).splitlines()[0][:120]})"
            )
            _pause(deadline, reason)
    store.set_timeout(timedelta(seconds=PEER_TIMEOUT_SECONDS))
    return dist.PrefixStore(f"trainer/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _is_hidden(host: str, ranks: RankInfo) -> bool:
    """True if MASTER_ADDR resolves to the loopback interface here although other machines must reach it."""
    alone = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world)) == ranks.world
    return not alone and network.is_own_name_only(host)


def _choose_interface(ranks: RankInfo) -> None:
    """Make gloo use the interface toward rank 0, unless the environment sets one."""
    host = os.environ.get("MASTER_ADDR", "")
    if network.GLOO_INTERFACE not in os.environ and not _is_hidden(host, ranks):
        name = network.interface_towards(host)
        if name:
            os.environ[network.GLOO_INTERFACE] = name


def _pause(deadline: float, reason: str) -> None:
    if time.monotonic() > deadline:
        raise PeerLostError(f"{reason} after {START_SECONDS:.0f} s; start the same command again")
    time.sleep(POLL_SECONDS)
