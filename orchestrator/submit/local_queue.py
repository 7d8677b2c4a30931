"""The queue of one machine: one run per GPU, or on a CPU as many as its cores can take.

Runs that several processes share get as many processes, and GPUs, as all nodes of their Slurm job would have together.

A run gets the threads that its experiment gives it under Slurm (slurm.cpus_per_task), not a share of what is free: sums
depend on the number of threads in their last digits, and a run must give the same result under every launcher, and
when it is resumed alone.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ablatrix.orchestrator.job import task
from ablatrix.orchestrator.slurm.batch import Batch, Members
from ablatrix.orchestrator.store import job_command
from ablatrix.orchestrator.store.study_dir import LOGS
from ablatrix.orchestrator.study import exported_env
from ablatrix.orchestrator.study.layout import Layout
from ablatrix.orchestrator.submit.early_failures import EarlyFailures
from ablatrix.orchestrator.terminal import interrupts
from ablatrix.trainer.rundir.cpus import allotted_cores
from ablatrix.trainer.rundir.errors import AblatrixError, RunError, UserError
from ablatrix.trainer.rundir.files import open_to_append

POLL_SECONDS = 0.2


def find_devices(wanted: str | None) -> list[str]:
    """Return the GPUs to use: those asked for (`0,1`), else CUDA_VISIBLE_DEVICES, else all there are; []: the CPU.

    Raises UserError for one that this machine does not have.
    """
    if wanted is not None:
        chosen = [name.strip() for name in wanted.split(",") if name.strip()]
        _require_devices(chosen, wanted)
        return chosen
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [name for name in _existing_devices() if name.isdigit()]


def _require_devices(chosen: Sequence[str], wanted: str) -> None:
    there = _existing_devices() if chosen else []
    if chosen and not there:
        raise UserError(f"--devices {wanted}: no GPU here; leave --devices out to train on the CPU")
    unknown = [name for name in chosen if not any(name == d or (d.startswith(name) and "-" in name) for d in there)]
    if unknown:
        indices = ", ".join(name for name in there if name.isdigit())
        raise UserError(f"--devices {wanted}: there is no GPU {', '.join(unknown)} here; GPUs: {indices}")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"--devices {wanted}: names a GPU twice")


def _existing_devices() -> list[str]:
    """Indices and UUIDs (MIG devices included) of this machine's GPUs, by nvidia-smi, else by torch."""
    count = "import torch; print(*(f'GPU {i}:' for i in range(torch.cuda.device_count())), sep='\\n')"
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "-L"]
    elif os.path.exists("/dev/kfd"):
        command = [sys.executable, "-P", "-c", count]
    else:
        return []
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU ([0-9]+):", listed, re.MULTILINE) + re.findall(r"UUID: ([\w/-]+)", listed)


class StoppedError(AblatrixError):
    """The user stopped the queue."""

    exit_code = 130


class LocalQueue:
    """Runs a batch in child processes, a few at a time, and waits for them."""

    name = "local"

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = list(devices)
        self._running: dict[subprocess.Popen[bytes], str] = {}
        self._begun: dict[subprocess.Popen[bytes], tuple[Path, float]] = {}
        self.not_started: Members = []
        self._stopping = False
        self._shell: dict[str, str] = {}  # what the runs get of the environment

    def slots(self, threads: int, processes: int = 1) -> list[str]:
        """A slot per run that may run at once: its GPUs' indices, or '' for a share of the CPU.

        Raises UserError where there are GPUs, but fewer than a run has processes.
        """
        if not self.devices:
            return [""] * max(1, allotted_cores() // max(threads, processes))
        if len(self.devices) < processes:
            raise UserError(
                f"{processes} processes share a run (slurm.nodes, slurm.gpus_per_node), but there are "
                f"{len(self.devices)} GPUs here; --set slurm.nodes=1 --set slurm.gpus_per_node={len(self.devices)}"
            )
        starts = range(0, len(self.devices) - processes + 1, processes)
        return [",".join(self.devices[start : start + processes]) for start in starts]

    def run(self, batch: Batch, on_tick: Callable[[], None]) -> None:
        """Run all jobs, calling `on_tick` a few times a second. SIGINT or SIGTERM stops them, a checkpoint each.

        They go on when the terminal is closed.
        """
        layout = Layout(1, batch.settings.layout.world if batch.shared else 1)
        nodes = batch.settings.nodes if batch.shared else 1
        threads = min(batch.threads * nodes, allotted_cores())
        free = self.slots(threads, layout.processes)
        waiting = list(zip(batch.commands(layout), batch.jobs, strict=True))
        failures = EarlyFailures()
        logs = batch.study.folder / LOGS / f"{batch.token}.out"
        self._shell = exported_env.environment(batch.exports)
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with interrupts.surviving_hangup():
                while self._running or (waiting and not self._stopping):
                    while waiting and free and not self._stopping:
                        command, job = waiting.pop(0)
                        self._start(command, job[0][0].folder, free.pop(0), threads, batch.code, logs)
                    for process in [p for p in self._running if p.poll() is not None]:
                        free.append(self._running.pop(process))
                        folder, began = self._begun.pop(process)
                        failures.add(folder, time.monotonic() - began)
                    if waiting and failures.reason:
                        self.not_started, waiting = [member for _, job in waiting for member in job], []
                        why = f"the first {failures.count} runs failed alike: {failures.reason}"
                    interrupts.ignoring_lost_output(on_tick)
                    time.sleep(POLL_SECONDS)
        finally:
            for process in self._running:  # an error of our own must not leave trainers behind
                process.terminate()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if self._stopping:
            raise StoppedError("stopped; the same command goes on from the last checkpoints")
        if self.not_started:
            raise RunError(
                f"{why}; {len(self.not_started)} more were not started; fix this and rerun the command with --retry"
            )

    def _start(self, command: list[str], folder: Path, device: str, threads: int, code: Path, logs: Path) -> None:
        environment = {**self._shell, **job_command.environment(code, threads)}
        if device:
            environment["CUDA_VISIBLE_DEVICES"] = device
        with open_to_append(logs) as output:
            process = task.spawn(command, environment, output)
        self._running[process] = device
        self._begun[process] = folder, time.monotonic()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True
        for process in self._running:
            process.terminate()
