"""One run of a job on one of its nodes: claim it, start its processes, and record how they ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from ablatrix.orchestrator.job import rendezvous
from ablatrix.orchestrator.job.command_process import STOP_SIGNALS, kill_leftovers
from ablatrix.orchestrator.store import log_tail, run_facts, submit_attempts
from ablatrix.orchestrator.store.job_command import ALONE, trainer_command
from ablatrix.trainer.rundir import attempts, processes, run_files
from ablatrix.trainer.rundir.events import may_requeue, note, read_events
from ablatrix.trainer.rundir.files import open_to_append

if TYPE_CHECKING:
    from ablatrix.orchestrator.study.node_layout import Layout

SETTLE_SECONDS = 15.0  # for another node's task to record why its part of a run failed
GRACE_SECONDS = 30.0  # for a run's processes to end by themselves after one of them has failed


def spawn(
    words: Sequence[str], environ: Mapping[str, str], output: BinaryIO, prepare: Callable[[], None] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process with all output in `output`, in a new session so that Ctrl-C reaches it only through us.

    prepare: called in the child before the program starts.
    """
    return subprocess.Popen(
        words,
        env=environ,
        stdout=output,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=prepare,
    )


class Process(Protocol):
    """The interface of a process started by a job. returncode: None while it runs."""

    returncode: Any

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""

    def wait(self) -> int:
        """Wait for the exit code."""

    def send_signal(self, number: int) -> None:
        """Send a signal; do nothing if the process has ended."""

    def kill(self) -> None:
        """Send SIGKILL."""


# Starts a process as `spawn` does
Start = Callable[[Sequence[str], Mapping[str, str], BinaryIO, Callable[[], None] | None], Process]


def restart_count() -> int:
    """Return how often Slurm has restarted this job."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdigit() else 0


class JobMember:
    """One run of the job: its trainer, or this node's part of the processes that share it."""

    def __init__(self, run_dir: Path, attempt: int, layout: Layout = ALONE, start: Start = spawn) -> None:
        self.run_dir = run_dir
        self.start_process = start
        self.attempt = attempt
        self.layout = layout if run_facts.is_distributed(run_dir) else ALONE
        self.node = rendezvous.node_index(layout)  # the task of node 0 records events for all nodes
        self.output = run_dir / (f"job-node{self.node}.out" if self.node else run_files.JOB_OUT)
        self.processes: list[Process] = []
        self.not_started = False  # True if it failed before its processes could be started
        self.lost_node = False  # True if a node of the run has disappeared
        self.first_step = 0  # step of the newest checkpoint before this job
        self.earlier_starts = 0  # number of trainers that had the run before

    def start(self, job_id: str) -> None:
        """Start the run's processes unless another job has the run. A failure does not end the job's other runs."""
        try:
            refusal = self._claim(job_id)
            if refusal:
                print(f"{self.run_dir}: nothing to do: {refusal}", flush=True)
                return
            foreign = run_facts.find_foreign_code(self.run_dir)
            if foreign:
                self._fail_to_start(foreign)
                return
            print(f"{self.run_dir}: output in {self.output}", flush=True)
            self.first_step = self.last_checkpoint()
            self.earlier_starts = attempts.newest(self.run_dir)
            try:
                environments = rendezvous.environments(self.layout, self.run_dir)
            except OSError as error:
                self._fail_to_start(f"the job's nodes are not known: {error}")
                return
            self._spawn(environments)
        except OSError as error:
            where = error.filename or self.run_dir
            self._fail_to_start(f"{where}: {error.strerror}; submit again with --retry")

    def _claim(self, job_id: str) -> str | None:
        """Claim the run for this job; return None, or why the job must leave the run alone. Raises OSError."""
        claim = submit_attempts.follow if self.node else submit_attempts.start
        refusal = claim(self.run_dir, self.attempt, job_id)
        if not refusal and restart_count() and self._has_failed():
            refusal = "it failed before the job was requeued for the others"
        if not refusal and restart_count() and self.is_stopped_by_user():
            refusal = "it was stopped before the job was requeued for the others"
        if self.node and self.layout is ALONE:
            refusal = "it is trained on the first node alone"
        return refusal

    def _fail_to_start(self, reason: str) -> None:
        self.not_started = True
        note(self.run_dir, "failed", reason=reason)
        print(f"{self.run_dir}: {reason}", flush=True)

    def _spawn(self, environments: Sequence[Mapping[str, str]]) -> None:
        # a command's runner needs a signal that it can handle, so that it can end what the command started
        number = signal.SIGHUP if run_facts.is_command(self.run_dir) else signal.SIGKILL
        prepare = processes.end_with_parent(number)
        with open_to_append(self.output) as output:
            # blocked until the trainer has installed its handlers: before that, a signal would kill it
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            try:
                for environ in environments:
                    self.processes.append(self.start_process(trainer_command(self.run_dir), environ, output, prepare))
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def send(self, number: int) -> None:
        """Pass a signal on; SIGUSR1 is sent as SIGUSR2, the only one of the two that the trainer handles."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGUSR2 if number == signal.SIGUSR1 else number)

    def finish(self) -> int:
        """Wait for the run's processes, record a failure in the run's events, and return the exit code."""
        code = self._wait() if self.processes else int(self.not_started)
        if code < 0 and run_facts.is_command(self.run_dir):  # its runner was killed, but the command may still run
            kill_leftovers(self.run_dir.absolute(), before=self.earlier_starts + 2)
        if code == run_files.EXIT_SUPERSEDED or attempts.newest(self.run_dir) > self.earlier_starts + 1:
            return 0  # another job has the run and will record its outcome
        if code == run_files.EXIT_LOST_PEER and self.layout.nodes > 1:
            code = self._judge_lost_peer()
        if code == run_files.EXIT_STOPPED and self.node:
            return 0  # the task of node 0 requeues the job
        if code not in (0, run_files.EXIT_STOPPED):
            self._record_failure(code)
        return code if code >= 0 else 128 - code

    def _wait(self) -> int:
        """Return the exit code of the run's processes; if one fails, end the others and return its code."""
        if len(self.processes) == 1:
            return self.processes[0].wait()
        failed: list[int] = []
        deadline = float("inf")
        while any(process.poll() is None for process in self.processes):
            if not failed:
                failed = [p.returncode for p in self.processes if p.returncode not in (None, 0, run_files.EXIT_STOPPED)]
                deadline = time.monotonic() + GRACE_SECONDS if failed else deadline
            if time.monotonic() > deadline:
                for process in self.processes:
                    process.kill()
            time.sleep(0.1)
        codes = [process.returncode for process in self.processes]
        if run_files.EXIT_SUPERSEDED in codes:
            return run_files.EXIT_SUPERSEDED
        # a killed process (a negative code) is the cause of the errors that the others report
        failed = sorted(failed or [code for code in codes if code not in (0, run_files.EXIT_STOPPED)])
        return failed[0] if failed else max(codes)

    def _judge_lost_peer(self) -> int:
        """Return the exit code after the processes of another node have disappeared.

        That node's task records a failure. If it does not, the node is gone too, and the run must continue elsewhere.
        """
        deadline = time.monotonic() + (0 if self.node else SETTLE_SECONDS)
        while time.monotonic() < deadline:
            if self._has_failed():
                return 1
            time.sleep(0.2)
        self.lost_node = True
        return run_files.EXIT_STOPPED

    def _record_failure(self, code: int) -> None:
        """Record why the run failed, unless its trainer has done so; a killed process cannot."""
        killed_one_of_many = code < 0 and self.layout.world > 1
        if killed_one_of_many or not self._has_failed():
            reason = log_tail.describe_exit(code, self.output)
            note(self.run_dir, "failed", reason=f"one of its processes was {reason}" if killed_one_of_many else reason)

    def fail(self, reason: str) -> None:
        """Record a failure unless one is already recorded."""
        if not self._has_failed():
            note(self.run_dir, "failed", reason=reason)

    def _has_failed(self) -> bool:
        """True if the last event is a failure; a process that lost its failed peer may still report that later."""
        names = [event["event"] for event in read_events(self.run_dir) if event["event"] != "lost_peer"]
        return bool(names) and names[-1] == "failed"

    def is_stopped_by_user(self) -> bool:
        """True if the file `stop` or a callback stopped the run, which then waits for the next submit."""
        events = read_events(self.run_dir)
        return bool(events) and events[-1]["event"] == "stopped" and not may_requeue(events[-1])

    def last_checkpoint(self) -> int:
        """Return the step of the newest checkpoint in the run's events, 0 before the first."""
        events = read_events(self.run_dir)
        steps = (event.get("iter") for event in events if event["event"] in ("checkpoint", "stopped"))
        return max((step for step in steps if isinstance(step, int)), default=0)
