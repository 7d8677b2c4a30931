"""Hours for which runs have occupied GPUs or cores, from the events of all attempts, evaluations included."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]

STARTS = ("started", "resumed")
# Written by the run's own processes; other processes may record days later that a run has ended
LIFE = ("heartbeat", "checkpoint", "signal", "spike", "out_of_memory", "stopped", "failed", "finished", "requeued")


@dataclass(frozen=True)
class Use:
    """One attempt at a run. start, end: Unix seconds; device: equal for runs sharing it; count: number of devices."""

    start: float
    end: float
    device: tuple[str, ...]
    count: int
    gpu: bool


@dataclass(frozen=True)
class Hours:
    """Device time of runs. gpu: GPU-hours; cpu: CPU-hours of runs without a GPU."""

    gpu: float = 0.0
    cpu: float = 0.0

    def __str__(self) -> str:
        parts = [f"{n:.3g} {unit}-hours" for n, unit in ((self.gpu, "GPU"), (self.cpu, "CPU")) if n]
        return " and ".join(parts) or "0 GPU-hours"


def uses_of(run: str, events: Iterable[Event]) -> list[Use]:
    """Return the attempts in a run's events, oldest first; an attempt whose end is unknown ends at its last event.

    Attempts of earlier versions, which did not record devices, count as one core that no other run shares.
    """
    found: list[Use] = []
    open_attempt: Event = {}
    for event in events:
        if event["event"] in STARTS:
            open_attempt = event
            found.append(_use(run, event))
        elif open_attempt and event["event"] in LIFE and event["time"] > found[-1].end:
            last = found[-1]
            found[-1] = Use(last.start, float(event["time"]), last.device, last.count, last.gpu)
    return found


def use_of_summary(run: str, summary: Mapping[str, Any]) -> list[Use]:
    """Return the training time in a summary.json as an attempt, for a run without events; [] if no time is recorded."""
    seconds, device, processes = (summary.get(name) for name in ("seconds", "device", "processes"))
    if not isinstance(seconds, int | float) or not seconds > 0:
        return []
    many = processes if isinstance(processes, int) else 1
    return [Use(0.0, float(seconds), (run,), many, gpu="cuda" in str(device))]


def _use(run: str, event: Event) -> Use:
    gpus, processes, threads = (event.get(name) for name in ("gpus", "processes", "threads"))
    time, many = float(event["time"]), processes if isinstance(processes, int) else 1
    if isinstance(gpus, list) and gpus:
        return Use(time, time, (str(event.get("host")), *map(str, gpus)), many, gpu=True)
    if gpus is None and "cuda" in str(event.get("device", "")):
        return Use(time, time, (run,), many, gpu=True)
    return Use(time, time, (run,), many * (threads if isinstance(threads, int) else 1), gpu=False)


def total(uses: Sequence[Use]) -> Hours:
    """Return the hours of these attempts; time during which runs shared the same devices counts once."""
    by_device: dict[tuple[bool, tuple[str, ...]], list[Use]] = defaultdict(list)
    for use in uses:
        by_device[use.gpu, use.device].append(use)
    seconds = {True: 0.0, False: 0.0}
    for (gpu, _), group in by_device.items():
        until = float("-inf")
        for use in sorted(group, key=lambda use: use.start):
            seconds[gpu] += max(0.0, use.end - max(use.start, until)) * use.count
            until = max(until, use.end)
    return Hours(seconds[True] / 3600, seconds[False] / 3600)
