"""The processes of one run: how they find each other, and what they tell each other besides gradients."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.device import pick_device
from ablatrix.trainer.distributed.rank_info import PeerLostError, Place, is_lost_peer, lost
from ablatrix.trainer.rundir import network
from ablatrix.trainer.rundir.errors import UserError

START_SECONDS = 600.0  # in which all processes must have found each other
SILENT_SECONDS = 1800.0  # after which a process that is connected but does not answer is given up
PARTING_SECONDS = 30.0  # that the lead waits for those who must still hear its last word
POLL_SECONDS = 0.05


class Team:
    """The processes of a run, joined; `rank` 0 is the lead. Messages go through a store that the lead keeps."""

    def __init__(self, place: Place, device: torch.device, store: dist.Store) -> None:
        self.place, self.device, self.store = place, device, store
        self.rank, self.world = place.rank, place.world

    @classmethod
    def join(cls, place: Place, config: RunConfig) -> Team:
        """Wait for the other processes. Raises UserError (no device), PeerLostError (somebody does not come)."""
        device = local_device(config.trainer.device, place.local_rank)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        _choose_interface(place)
        deadline = time.monotonic() + START_SECONDS
        store = _open_store(place, deadline)
        store.add("here", 1)
        # not left to torch: in there, a signal would not be noticed
        while store.add("here", 0) < place.world:
            _pause(deadline, f"{place.world - store.add('here', 0)} of {place.world} processes have not started")
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=place.rank, world_size=place.world, timeout=timedelta(seconds=SILENT_SECONDS)
        )
        return cls(place, device, store)

    def leave(self) -> None:
        """When all is done."""
        dist.destroy_process_group()

    # ---- words

    def tell(self, key: str, value: Any) -> None:
        """Said by the lead, once."""
        self.store.set(key, json.dumps(value))

    def part(self, key: str, value: Any) -> None:
        """The lead's last word: it waits until all have heard it, because the store ends with it."""
        self.tell(key, value)
        deadline = time.monotonic() + PARTING_SECONDS
        with contextlib.suppress(RuntimeError):
            while self.store.add(f"{key}/heard", 0) < self.world - 1 and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)

    def hear(self, key: str) -> Any:
        """What the lead says, however long it takes: it may have a corpus to tokenise."""
        with peers():
            while not self.store.check([key]):
                time.sleep(POLL_SECONDS)
            value = json.loads(self.store.get(key))
            self.store.add(f"{key}/heard", 1)
            return value

    # ---- numbers

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag as raised by any of the processes."""
        values = torch.tensor([int(flag) for flag in flags])
        with peers():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        return tuple(bool(value) for value in values.tolist())

    def total(self, value: float) -> float:
        """The sum over the processes."""
        values = torch.tensor([value], dtype=torch.float64)
        with peers():
            dist.all_reduce(values)
        return values.item()

    def start_sum(self, tensor: Tensor) -> Any:
        """Begin to replace the tensor by its sum over the processes; `wait` for the answer."""
        with peers():
            return dist.all_reduce(tensor, async_op=True)

    def wait(self, work: Any) -> None:
        with peers():
            work.wait()

    def gather(self, value: Any) -> list[Any]:
        """What each process has, for the lead; [] for the others. Tensors should be on the CPU."""
        found: list[Any] | None = [None] * self.world if self.rank == 0 else None
        with peers():
            dist.gather_object(value, found)
        return found or []


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """Errors of connections that break within it are those of another process."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_peer(error):
            raise
        raise lost(error) from error


def local_device(name: str, local_rank: int) -> torch.device:
    """The device of process `local_rank` of this machine. Raises UserError where there are fewer."""
    device = pick_device("cpu" if name == "auto" and not torch.cuda.is_available() else name)
    if device.type == "mps":
        raise UserError("trainer.device: several processes cannot share an mps device; use cpu")
    if device.type != "cuda" or device.index is not None:
        return device
    count = torch.cuda.device_count()
    if local_rank >= count > 1:
        raise UserError(f"process {local_rank + 1} of this machine finds {count} GPUs only; start one process per GPU")
    return torch.device("cuda", local_rank if count > 1 else 0)  # a scheduler may show each process its own only


def _open_store(place: Place, deadline: float) -> dist.Store:
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not host or not port.isdigit():
        raise UserError("MASTER_ADDR and MASTER_PORT are not set: start the processes with torchrun")
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # torchrun keeps a store itself
    lead = place.rank == 0 and not agents
    while True:
        try:
            store = dist.TCPStore(
                host, int(port), is_master=lead, wait_for_workers=False, timeout=timedelta(seconds=5),
                master_listen_fd=network.listen(host, int(port), _is_hidden(host, place)) if lead else None,
            )  # fmt: skip
            break
        except (RuntimeError, OSError) as error:
            reason = f"{host}:{port} cannot be {'used' if lead else 'reached'} ({str(error).splitlines()[0][:120]})"
            _pause(deadline, reason)
    store.set_timeout(timedelta(seconds=SILENT_SECONDS))
    return dist.PrefixStore(f"trainer/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _is_hidden(host: str, place: Place) -> bool:
    """Does the name of the meeting point mean something here that processes on other machines cannot reach?"""
    alone = int(os.environ.get("LOCAL_WORLD_SIZE", place.world)) == place.world
    return not alone and network.is_own_name_only(host)


def _choose_interface(place: Place) -> None:
    """Have gloo listen where the lead is reached from, unless that was decided already."""
    host = os.environ.get("MASTER_ADDR", "")
    if network.GLOO_INTERFACE not in os.environ and not _is_hidden(host, place):
        name = network.interface_towards(host)
        if name:
            os.environ[network.GLOO_INTERFACE] = name


def _pause(deadline: float, reason: str) -> None:
    if time.monotonic() > deadline:
        raise PeerLostError(f"{reason} after {START_SECONDS:.0f} s; start the same command again")
    time.sleep(POLL_SECONDS)
