"""The task that every launcher starts in a job: `python -m ablatrix.orchestrator.job.task RUN_DIR:ATTEMPT ...`.

It claims its runs, starts a trainer for each with the output appended to the run's job.out, and passes signals on.
Afterwards it requeues the job if Slurm asked it to stop, and records how the trainers ended. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from ablatrix.orchestrator.job import rendezvous
from ablatrix.orchestrator.job.command_process import STOP_SIGNALS
from ablatrix.orchestrator.job.member import JobMember, Start, restart_count, spawn
from ablatrix.orchestrator.store import shared_fs
from ablatrix.orchestrator.study.node_layout import Layout
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import note, slurm_job_id

# Slurm's warning before the time limit or a preemption; SIGTERM and SIGINT come from people
REQUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
MOST_RESTARTS_WITHOUT_PROGRESS = 3  # of a job that is repeatedly stopped before its next checkpoint


class JobTask:
    """The runs of one job on one node, and the signals that the job receives."""

    def __init__(self, members: Sequence[JobMember]) -> None:
        self.members = members
        self.received: list[int] = []

    def run(self) -> int:
        """Train, and return the exit code for the scheduler: 0, or the worst of the trainers' exit codes."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        job_id = slurm_job_id() or f"local-{os.getpid()}"
        for member in self.members:
            member.start(job_id)
        for early in self.received:  # received before all members had started
            self._send(early)
        codes = [member.finish() for member in self.members]
        stopped = [
            member
            for member, code in zip(self.members, codes, strict=True)
            if code == run_files.EXIT_STOPPED and not member.is_stopped_by_user()
        ]
        if stopped and self._requeue(stopped):
            return 0
        for member in stopped:
            if member.lost_node:
                member.fail("a node of the job no longer responds")
        return max(codes)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        self._send(number)

    def _send(self, number: int) -> None:
        for member in self.members:
            member.send(number)

    def _requeue(self, stopped: Sequence[JobMember]) -> bool:
        """Requeue this job, or this task of an array; return False if that is unwanted or impossible."""
        job_id = slurm_job_id()
        asked = any(number in REQUEUE_SIGNALS for number in self.received)
        if not job_id or not (asked or any(member.lost_node for member in stopped)):
            return False
        restarts = restart_count()
        progress = any(member.last_checkpoint() > member.first_step for member in stopped)
        if restarts >= MOST_RESTARTS_WITHOUT_PROGRESS and not progress:
            reason = f"no checkpoint since the last of {restarts} restarts: the time limit is too short for this run"
            for member in stopped:
                note(member.run_dir, "failed", reason=reason)
            return False
        for member in stopped:
            note(member.run_dir, "requeued")
        try:
            rendezvous.scontrol("requeue", job_id)
        except OSError as error:
            print(error, flush=True)
            for member in stopped:
                note(member.run_dir, "stopped", reason=str(error))
            return False
        time.sleep(60)  # Slurm ends this job now; exiting first would count as the job's end
        return True


def await_config(run_dir: Path) -> bool:
    """Wait until the files written by submit are visible on this node; return False if there is no run folder.

    If only config.json is missing, the trainer reports that and the run fails.
    """
    deadline = time.monotonic() + shared_fs.visibility_delay(run_dir)
    # listing a folder makes an NFS client query the server; config.json was written last
    while run_files.CONFIG not in _list_folder(run_dir) and time.monotonic() < deadline:
        time.sleep(0.2)
    return run_dir.is_dir()


def _list_folder(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def main(argv: Sequence[str] | None = None, start: Start = spawn) -> int:
    """Train the runs of one job and return the exit code. start: starts their processes."""
    parser = argparse.ArgumentParser(
        prog="python -m ablatrix.orchestrator.job.task", description="Train the runs of one job."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR:ATTEMPT")
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the job; this command runs on each")
    parser.add_argument("--processes", type=int, default=1, help="processes that share a run on each node")
    options = parser.parse_args(argv)
    layout = Layout(options.nodes, options.processes)
    pairs = [(Path(folder), int(attempt)) for folder, _, attempt in (word.rpartition(":") for word in options.runs)]
    missing = [folder for folder, _ in pairs if not await_config(folder)]
    for folder in missing:  # do not create it again
        text = f"error: {folder} does not exist (removed, purged or not mounted); submit again"
        print(text, file=sys.stderr, flush=True)
    try:
        members = [JobMember(folder, attempt, layout, start) for folder, attempt in pairs if folder not in missing]
        return max(JobTask(members).run() if members else 0, int(bool(missing)))
    except OSError as error:
        print(f"error: {error.filename or 'the run folder'}: {error.strerror}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
