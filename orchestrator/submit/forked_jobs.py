"""Jobs on this machine that are forked from a process with torch loaded, which saves each run about a second.

The other half is `job/warm_parent.py`. Jobs are not our children, so they are monitored through pidfds.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ablatrix.orchestrator.store import run_facts
from ablatrix.trainer.rundir.files import open_to_append

if TYPE_CHECKING:
    from ablatrix.orchestrator.slurm.batch import Batch

MODULE = "ablatrix.orchestrator.job.warm_parent"
ANSWER_SECONDS = 300.0  # loading torch from a cold network file system takes a minute
STOP_SECONDS = 10.0


class ForkedJob:
    """A job, with the part of subprocess.Popen's interface that the queue uses."""

    def __init__(self, pid: int) -> None:
        self._pidfd = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Return None while the job runs, then 0: only the run's files tell how it ended."""
        if self._pidfd >= 0 and not select.select([self._pidfd], [], [], 0)[0]:
            return None
        self.close()
        return 0

    def terminate(self) -> None:
        with contextlib.suppress(OSError):  # it has ended, or this is a signal handler that interrupted `close`
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def close(self) -> None:
        descriptor, self._pidfd = self._pidfd, -1
        if descriptor >= 0:
            os.close(descriptor)


class WarmParent:
    """The process from which the jobs of a batch are forked; they outlive it."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        with open_to_append(log) as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,  # `select` must see every unread line
                start_new_session=True,
            )
        self._log = log

    def start(self, run: str, give_up: Callable[[], bool] = lambda: False) -> ForkedJob | None:
        """Fork a job for RUN_DIR:ATTEMPT; return None if the process has exited or does not answer.

        give_up: called once a second; True ends the wait.
        """
        assert self._process.stdin and self._process.stdout
        end = time.monotonic() + ANSWER_SECONDS
        try:
            self._process.stdin.write(json.dumps([str(self._log), run]).encode() + b"\n")
            while not give_up() and time.monotonic() < end:
                if select.select([self._process.stdout], [], [], 1.0)[0]:
                    answer = self._process.stdout.readline()
                    if not answer or answer.strip().isdigit():  # other lines are from the site's sitecustomize
                        return ForkedJob(int(answer)) if answer else None
            self._process.kill()  # it must not fork the job later
        except OSError:
            pass
        return None

    def stop(self) -> None:
        """End the process."""
        try:
            self._process.communicate(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def pays(batch: Batch, slots: int) -> bool:
    """True if forking is possible and pays for a batch: runs of our trainer, with one process each, more than slots."""
    commands = any(run_facts.is_command(run.folder) for run, _ in batch.members)
    return len(batch.jobs) > slots and not batch.shared and not commands and _can_follow()


def _can_follow() -> bool:
    """True if this system has pidfds (Linux 5.3 or newer)."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True
