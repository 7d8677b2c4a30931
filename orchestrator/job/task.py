"""What every launcher starts inside a job: `python -m ablatrix.orchestrator.job.task RUN_DIR:ATTEMPT ...`.

It claims its runs, starts a trainer for each with the output appended to the run's job.out, passes signals on, and
afterwards either has the job requeued (told to stop by Slurm, checkpoints written) or says how the trainers ended.
Needs the standard library only, so that it starts at once.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from ablatrix.orchestrator.job import rendezvous
from ablatrix.orchestrator.job.command_runner import end_leftovers
from ablatrix.orchestrator.store import (
    log_tail,
    provenance,
    run_folder,
    shared_fs,
    submit_attempts,
)
from ablatrix.orchestrator.store.job_command import ALONE, trainer_command
from ablatrix.orchestrator.study import command
from ablatrix.orchestrator.study.layout import Layout
from ablatrix.trainer.rundir import attempts, processes, run_files
from ablatrix.trainer.rundir.events import append_event, may_requeue, read_events, slurm_job_id
from ablatrix.trainer.rundir.files import open_to_append

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# Slurm's warning before the time limit or a preemption; SIGTERM and SIGINT come from people
REQUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
SETTLE_SECONDS = 15.0  # within which a node that is still there has said why its part of a run has failed
GRACE_SECONDS = 30.0  # that the processes of a run have to end by themselves when one of them has failed
MOST_VAIN_RESTARTS = 3  # a job that is told to stop before its first checkpoint is queued again, but not for ever


def spawn(
    words: Sequence[str], environ: Mapping[str, str], output: BinaryIO, prepare: Callable[[], None] | None = None
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that Ctrl-C reaches it only through us; all output goes to `output`.

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


class Member:
    """One run of the job: its trainer, or this node's part of the processes that share it."""

    def __init__(self, run_dir: Path, attempt: int, layout: Layout = ALONE) -> None:
        self.run_dir = run_dir
        self.attempt = attempt
        self.layout = layout if run_folder.is_distributed(run_dir) else ALONE
        self.node = rendezvous.node_index(layout)  # of the first one the task speaks for all
        self.output = run_dir / (f"job-node{self.node}.out" if self.node else run_files.JOB_OUT)
        self.children: list[subprocess.Popen[bytes]] = []
        self.unplaced = False  # the nodes that share the run were not to be found
        self.lost_node = False  # one of them has gone without a word
        self.first_step = 0
        self.trainers = 0  # that had this run before ours

    def start(self, job_id: str) -> None:
        """Start the trainer, unless another job has the run. A run that cannot be begun does not end the others."""
        try:
            self._start(job_id)
        except OSError as error:
            self.unplaced = True
            self.note("failed", reason=f"{error.filename or self.run_dir}: {error.strerror}; submit again with --retry")

    def _start(self, job_id: str) -> None:
        refusal = self._refusal(job_id)
        if refusal:
            print(f"{self.run_dir}: nothing to do: {refusal}", flush=True)
            return
        foreign = provenance.find_foreign_code(self.run_dir)
        if foreign:
            self.unplaced = True
            self.note("failed", reason=foreign)
            print(f"{self.run_dir}: {foreign}", flush=True)
            return
        print(f"{self.run_dir}: output in {self.output}", flush=True)
        self.first_step = _last_step(self.run_dir)
        self.trainers = attempts.newest(self.run_dir)
        try:
            environments = rendezvous.environments(self.layout, self.run_dir)
        except OSError as error:
            self.unplaced = True
            self.note("failed", reason=f"the job's nodes are not known: {error}")
            return
        with open_to_append(self.output) as output:
            words = trainer_command(self.run_dir)
            # A command's runner must be able to end what the command has started
            prepare = processes.end_with_parent(signal.SIGHUP if self._is_command() else signal.SIGKILL)
            # Held back until the trainer has its handlers (it lets them through), or they would kill it
            signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
            try:
                for values in environments:
                    self.children.append(spawn(words, values, output, prepare))
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)

    def _is_command(self) -> bool:
        """True if the run is a command of the user's, not our trainer."""
        return (self.run_dir / command.SPEC).exists()

    def _refusal(self, job_id: str) -> str | None:
        """Why this job must leave the run alone, None where it need not. Raises OSError."""
        claim = submit_attempts.follow if self.node else submit_attempts.start
        refusal = claim(self.run_dir, self.attempt, job_id)
        if not refusal and _restarts() and self._has_failed():
            refusal = "it failed before the job was requeued for the others"
        if not refusal and _restarts() and self.stopped_for_good():
            refusal = "it was asked to stop before the job was requeued for the others"
        if self.node and self.layout is ALONE:
            refusal = "it is trained on the first node alone"
        return refusal

    def note(self, event: str, **fields: Any) -> None:
        """An event, where the disk takes it: without it the job's end says what became of the run."""
        try:
            append_event(self.run_dir, event, **fields)
        except OSError as error:
            print(f"{self.run_dir}: {event} {fields} could not be written down: {error.strerror}", flush=True)

    def send(self, number: int) -> None:
        for child in self.children:
            if child.poll() is None:
                # SIGUSR1 would end the trainer, which listens to SIGUSR2
                child.send_signal(signal.SIGUSR2 if number == signal.SIGUSR1 else number)

    def finish(self) -> int:
        """Wait for the trainer; its exit code, and the reason of a failure in the run's events."""
        code = self._wait() if self.children else int(self.unplaced)
        if code < 0 and self._is_command():  # its runner was killed, and could not end what the command has started
            end_leftovers(self.run_dir.absolute(), before=self.trainers + 2)
        if code == run_files.EXIT_SUPERSEDED or attempts.newest(self.run_dir) > self.trainers + 1:
            return 0  # another job has the run: what became of our trainer says nothing about it
        if code == run_files.EXIT_LOST_PEER and self.layout.nodes > 1:
            code = self._after_lost_peer()
        if code == run_files.EXIT_STOPPED and self.node:
            return 0  # the first node's task has the job queued again
        if code not in (0, run_files.EXIT_STOPPED):
            self._record_failure(code)
        return code if code >= 0 else 128 - code

    def _wait(self) -> int:
        """The exit code of the processes; when one fails, the others are ended too, and its code is the run's."""
        if len(self.children) == 1:
            return self.children[0].wait()
        failed: list[int] = []
        deadline = float("inf")
        while any(child.poll() is None for child in self.children):
            if not failed:
                failed = [c.returncode for c in self.children if c.returncode not in (None, 0, run_files.EXIT_STOPPED)]
                deadline = time.monotonic() + GRACE_SECONDS if failed else deadline
            if time.monotonic() > deadline:
                for child in self.children:
                    child.kill()
            time.sleep(0.1)
        codes = [child.returncode for child in self.children]
        if run_files.EXIT_SUPERSEDED in codes:
            return run_files.EXIT_SUPERSEDED
        # a process that was killed is the cause of what the others, whom it had left, say of themselves
        failed = sorted(failed or [code for code in codes if code not in (0, run_files.EXIT_STOPPED)])
        return failed[0] if failed else max(codes)

    def _after_lost_peer(self) -> int:
        """The exit code where the processes of another node are gone: its task says why, unless the node is gone too.

        Then the run is to go on from its checkpoint, on other nodes.
        """
        deadline = time.monotonic() + (0 if self.node else SETTLE_SECONDS)
        while time.monotonic() < deadline:
            if self._has_failed():
                return 1
            time.sleep(0.2)
        self.lost_node = True
        return run_files.EXIT_STOPPED

    def _record_failure(self, code: int) -> None:
        """Say why, unless the trainer has said it itself; one that was killed could not, but those that missed it."""
        if self._has_failed() and not (code < 0 and self.layout.world > 1):
            return
        reason = log_tail.describe_exit(code, self.output)
        shared = code < 0 and self.layout.world > 1
        self.note("failed", reason=f"one of its processes was {reason}" if shared else reason)

    def fail(self, reason: str) -> None:
        """Record a failure, unless one is there."""
        if not self._has_failed():
            self.note("failed", reason=reason)

    def _has_failed(self) -> bool:
        """Is a failure the last that was said? A process that another one has left may say so just after the cause."""
        said = [event["event"] for event in read_events(self.run_dir) if event["event"] != "lost_peer"]
        return bool(said) and said[-1] == "failed"

    def stopped_for_good(self) -> bool:
        """Has its file or a callback stopped the run? Then it waits for the next submit."""
        events = read_events(self.run_dir)
        return bool(events) and events[-1]["event"] == "stopped" and not may_requeue(events[-1])

    def has_progressed(self) -> bool:
        """Is there a newer checkpoint than when the job started? Else a requeue would go on for ever."""
        return _last_step(self.run_dir) > self.first_step


class Job:
    """The runs of one job, and the signals that it gets."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self.received: list[int] = []

    def run(self) -> int:
        """Train, and return the exit code for the scheduler: 0, or the worst of the trainers'."""
        for number in FORWARDED:
            signal.signal(number, self._on_signal)
        job_id = slurm_job_id() or f"local-{os.getpid()}"
        for member in self.members:
            member.start(job_id)
        for early in self.received:  # came before there was everybody to pass it on to
            self._send(early)
        codes = [member.finish() for member in self.members]
        stopped = [
            member
            for member, code in zip(self.members, codes, strict=True)
            if code == run_files.EXIT_STOPPED and not member.stopped_for_good()
        ]
        if stopped and self._requeue(stopped):
            return 0
        for member in stopped:
            if member.lost_node:
                member.fail("a node of the job does not answer any more")
        return max(codes)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        self._send(number)

    def _send(self, number: int) -> None:
        for member in self.members:
            member.send(number)

    def _requeue(self, stopped: Sequence[Member]) -> bool:
        """Have this job, or this one task of an array, queued again; False where that is not wanted or not possible."""
        job_id = slurm_job_id()
        asked = any(number in REQUEUE_SIGNALS for number in self.received)
        if not job_id or not (asked or any(member.lost_node for member in stopped)):
            return False
        if _restarts() >= MOST_VAIN_RESTARTS and not any(member.has_progressed() for member in stopped):
            for member in stopped:
                reason = (
                    f"no checkpoint since the last of {_restarts()} restarts: the time limit is too short for this run"
                )
                member.note("failed", reason=reason)
            return False
        for member in stopped:
            member.note("requeued")
        problem = _scontrol_requeue(job_id)
        if problem:
            print(f"scontrol requeue {job_id}: {problem}", flush=True)
            for member in stopped:
                member.note("stopped", reason=f"scontrol requeue: {problem}")
            return False
        time.sleep(60)  # Slurm ends this job now; an exit of our own would count as its end
        return True


def await_config(run_dir: Path) -> bool:
    """Wait until what submit has written is seen on this node; False where there is not even the run's folder.

    Where only config.json is missing the trainer says so, and the run has failed.
    """
    deadline = time.monotonic() + shared_fs.delay(run_dir)
    # lists the folder, which makes an NFS client ask the server; config.json was written last
    while run_files.CONFIG not in _names(run_dir) and time.monotonic() < deadline:
        time.sleep(0.2)
    return run_dir.is_dir()


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _scontrol_requeue(job_id: str) -> str:
    """Have the job queued again; what went wrong, or ''."""
    try:
        command = ["scontrol", "requeue", job_id]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return result.stderr.strip() or "refused" if result.returncode else ""


def _restarts() -> int:
    """How often Slurm has started this job again."""
    count = os.environ.get("SLURM_RESTART_COUNT", "")
    return int(count) if count.isdigit() else 0


def _last_step(run_dir: Path) -> int:
    """Step of the newest checkpoint that the events tell of, 0 before the first."""
    saved = (event.get("iter") for event in read_events(run_dir) if event["event"] in ("checkpoint", "stopped"))
    return max((step for step in saved if isinstance(step, int)), default=0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ablatrix.orchestrator.job.task", description="Train the runs of one job."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR:ATTEMPT")
    parser.add_argument("--nodes", type=int, default=1, help="of the job; this command runs on each")
    parser.add_argument("--processes", type=int, default=1, help="that share a run on each node")
    given = parser.parse_args(argv)
    layout = Layout(given.nodes, given.processes)
    pairs = [(Path(folder), int(attempt)) for folder, _, attempt in (word.rpartition(":") for word in given.runs)]
    gone = [folder for folder, _ in pairs if not await_config(folder)]
    for folder in gone:  # nothing is made in its place
        print(
            f"error: {folder}: is not there (removed, purged or not mounted); submit again", file=sys.stderr, flush=True
        )
    try:
        members = [Member(folder, attempt, layout) for folder, attempt in pairs if folder not in gone]
        return max(Job(members).run() if members else 0, int(bool(gone)))
    except OSError as error:
        print(f"error: {error.filename or 'the run folder'}: {error.strerror}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
