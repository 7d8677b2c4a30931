"""The queue of one machine: one run per GPU, or on a CPU as many runs as its cores allow.

A distributed run gets as many processes and GPUs as all nodes of its Slurm job would have together.

A run gets as many threads as under Slurm (slurm.cpus_per_task), not a share of the free cores: the last digits of sums
depend on the number of threads, and a run must give the same result under every launcher and when it is resumed alone.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.job.member import spawn
from ablatrix.orchestrator.store import job_command
from ablatrix.orchestrator.store.study_dir import LOGS
from ablatrix.orchestrator.study import exported_env
from ablatrix.orchestrator.study.node_layout import Layout
from ablatrix.orchestrator.submit import forked_jobs
from ablatrix.orchestrator.submit.early_failures import EarlyFailures
from ablatrix.orchestrator.submit.forked_jobs import ForkedJob, WarmParent
from ablatrix.orchestrator.terminal import interrupts
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.cpus import allotted_cores
from ablatrix.trainer.rundir.errors import AblatrixError, RunError, UserError
from ablatrix.trainer.rundir.files import open_to_append

if TYPE_CHECKING:
    from ablatrix.orchestrator.slurm.batch import Batch, Members

POLL_SECONDS = 0.2


class StoppedError(AblatrixError):
    """Raised when the user stops the queue."""

    exit_code = 130


@dataclass(frozen=True)
class _Child:
    """The process of a run."""

    process: subprocess.Popen[bytes] | ForkedJob
    folder: Path
    slot: str
    started: float


class LocalQueue:
    """Run a batch in child processes, a few at a time, and wait for them."""

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = list(devices)
        self.not_started: Members = []
        self._children: list[_Child] = []
        self._free: list[str] = []
        self._parent: WarmParent | None = None
        self._failures = EarlyFailures()
        self._stopping = False

    def slots(self, threads: int, processes: int = 1) -> list[str]:
        """Return a slot for each run that may run at the same time: its GPU indices, or '' for a share of the CPU.

        Raises UserError if there are GPUs but fewer than a run has processes.
        """
        if not self.devices:
            return [""] * max(1, allotted_cores() // max(threads, processes))
        if len(self.devices) < processes:
            raise UserError(
                f"{processes} processes share a run (slurm.nodes, slurm.gpus_per_node), but this machine has "
                f"{count(len(self.devices), 'GPU')}; --set slurm.nodes=1 --set slurm.gpus_per_node={len(self.devices)}"
            )
        starts = range(0, len(self.devices) - processes + 1, processes)
        return [",".join(self.devices[start : start + processes]) for start in starts]

    def run(self, batch: Batch, on_tick: Callable[[], None]) -> None:
        """Run all jobs, calling `on_tick` a few times a second; closing the terminal does not stop them.

        Raises StoppedError on SIGINT or SIGTERM, which stop every run with a checkpoint, and RunError if the first
        runs all fail in the same way; `not_started` then contains the others.
        """
        layout = Layout(1, batch.settings.layout.world if batch.shared else 1)
        threads = min(batch.threads * (batch.settings.nodes if batch.shared else 1), allotted_cores())
        self._free = self.slots(threads, layout.processes)
        waiting = list(zip(batch.commands(layout), batch.jobs, strict=True))
        with self._stopping_on_signals(), interrupts.surviving_hangup(), self._forking(batch, threads):
            while self._children or (waiting and not self._stopping):
                while waiting and self._free and not self._stopping:
                    command, job = waiting.pop(0)
                    self._start(command, job[0][0].folder, threads, batch)
                self._collect_ended()
                if waiting and self._failures.reason:
                    self.not_started, waiting = [member for _, job in waiting for member in job], []
                interrupts.ignoring_lost_output(on_tick)
                time.sleep(POLL_SECONDS)
        if self._stopping:
            raise StoppedError("stopped; rerun the command to continue from the last checkpoints")
        if self.not_started:
            raise RunError(
                f"the first {self._failures.count} runs failed alike: {self._failures.reason}; not "
                f"started: {count(len(self.not_started), 'run')}; fix this and rerun the command with --retry"
            )

    def _start(self, command: list[str], folder: Path, threads: int, batch: Batch) -> None:
        slot = self._free.pop(0)
        process: subprocess.Popen[bytes] | ForkedJob | None = None
        if self._parent:
            process = self._parent.start(command[-1], lambda: self._stopping)
        if process is None:
            environment = _environment(batch, threads) | ({"CUDA_VISIBLE_DEVICES": slot} if slot else {})
            with open_to_append(_log(batch)) as output:
                process = spawn(command, environment, output)
        self._children.append(_Child(process, folder, slot, time.monotonic()))
        if self._stopping:  # the signal came while the process was being started
            process.terminate()

    def _collect_ended(self) -> None:
        for child in [child for child in self._children if child.process.poll() is not None]:
            self._children.remove(child)
            self._free.append(child.slot)
            self._failures.add(child.folder, time.monotonic() - child.started)

    @contextlib.contextmanager
    def _forking(self, batch: Batch, threads: int) -> Iterator[None]:
        """Fork the jobs of a batch from a process that has torch loaded, if that saves time."""
        if self.devices or not forked_jobs.pays(batch, len(self._free)):
            yield
            return
        self._parent = WarmParent(_environment(batch, threads), _log(batch))
        try:
            yield
        finally:
            self._parent.stop()
            self._parent = None

    @contextlib.contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """Stop the runs on SIGINT and SIGTERM, and on any error in the block."""
        handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            self._terminate()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True
        self._terminate()

    def _terminate(self) -> None:
        for child in self._children:
            child.process.terminate()


def _environment(batch: Batch, threads: int) -> dict[str, str]:
    """Return the variables of the batch's jobs on this machine."""
    return exported_env.environment(batch.exports) | job_command.environment(batch.code, threads)


def _log(batch: Batch) -> Path:
    """Return the log of the batch's jobs; their runs have logs of their own."""
    return batch.study.folder / LOGS / f"{batch.token}.out"
