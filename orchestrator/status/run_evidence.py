"""Evidence in a run's folder: its summary, the events of its newest attempt, and whether its process is alive."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.status import device_hours, removed_files
from ablatrix.orchestrator.store import run_facts, shared_fs, submit_attempts
from ablatrix.trainer.rundir import loss_digest, processes, run_files
from ablatrix.trainer.rundir.events import read_events
from ablatrix.trainer.rundir.files import list_folder

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.device_hours import Use
    from ablatrix.orchestrator.store.study_dir import StudyRun

HEARTBEAT_SECONDS = 120  # a trainer on another host that writes nothing for longer is presumed dead
CLOCKS_APART = 3600  # seconds; a file that is newer than its last record by more than this was copied

ALIVE = ("started", "resumed", "heartbeat", "checkpoint", "signal", "requeued")
ENDED = ("stopped", "failed", "ended", "unqueued", "finished")

Record = dict[str, Any]


@dataclass(frozen=True)
class RunEvidence:
    """The records in a run's folder, from which its state is judged."""

    run: StudyRun
    summary: Record | None
    events: list[Record]  # of the newest attempt, without its `submitting` and `queued`
    queued: Record | None  # how that attempt was queued
    attempt: int
    claim: submit_attempts.Claim | None  # of an attempt that has no `queued` event yet
    max_iters: int
    missing: tuple[str, ...]
    altered: str = ""
    has_rows: bool = False  # True if there is a loss.csv
    uses: tuple[Use, ...] = ()  # of all attempts

    @classmethod
    def read(cls, run: StudyRun) -> RunEvidence:
        """Read a run's folder. Raises OSError if a file cannot be read.

        Only files in its listing are opened. It is listed after the events are read, because a run writes its summary
        before the event `finished`.
        """
        events = read_events(run.folder, certain=True, newest_only=("heartbeat", "checkpoint"))
        there = list_folder(run.folder)
        if not events and not {run_files.SUMMARY, submit_attempts.FOLDER}.intersection(there):  # never queued
            steps = run.steps or run_facts.planned_steps(run.folder)
            return cls(run, None, [], None, 0, None, steps, (), has_rows=run_files.LOSS in there)
        start = max((i for i, event in enumerate(events) if event["event"] == "submitting"), default=0)
        latest = [event for event in events[start:] if event["event"] != "submitting"]
        queued = next((event for event in reversed(latest) if event["event"] == "queued"), None)
        known = max((e.get("attempt", 0) for e in latest if e["event"] in ("queued", "unqueued")), default=0)
        claimed = submit_attempts.newest(run.folder) if submit_attempts.FOLDER in there else 0
        attempt = max(claimed, known)  # a purge may have removed the claims
        summary = run_facts.read_summary(run.folder) if run_files.SUMMARY in there else None
        return cls(
            run,
            summary,
            [event for event in latest if event["event"] != "queued"],
            queued,
            attempt,
            submit_attempts.read(run.folder, attempt) if attempt > known else None,
            run_facts.planned_steps(run.folder, summary) if summary or not run.steps else run.steps,
            removed_files.of_run(run.folder, events) if summary else (),
            loss_digest.find_change(run.folder, summary) if summary else "",
            run_files.LOSS in there,
            tuple(device_hours.uses_of(run.id, events)),
        )

    @property
    def life(self) -> Record:
        """The last event that shows whether the run is alive, {} if there is none."""
        return next((e for e in reversed(self.events) if e["event"] in ALIVE + ENDED), {})

    @property
    def last_event(self) -> str:
        """The name of `life`, '' if there is none."""
        return str(self.life.get("event", ""))

    @property
    def start(self) -> Record | None:
        """The event with which the newest trainer started."""
        return next((e for e in reversed(self.events) if e["event"] in ("started", "resumed")), None)

    @property
    def node(self) -> str:
        """The host that wrote the last event of a living run."""
        return next((str(e.get("host")) for e in reversed(self.events) if e["event"] in ALIVE), "")

    @property
    def is_local(self) -> bool:
        """True if the attempt was queued on this machine, without Slurm."""
        return bool(self.queued) and (self.queued or {}).get("launcher") == "local"

    @property
    def token(self) -> str:
        """The token of the submission that queued the attempt."""
        return str((self.queued or {}).get("token", ""))

    @property
    def own_job_id(self) -> str:
        """The job id recorded by the trainer."""
        return str((self.start or {}).get("job_id", ""))

    @property
    def job_id(self) -> str:
        """The id of the run's job, as recorded by the trainer, else by `submit`."""
        own = "" if self.is_local else self.own_job_id
        return own or str((self.queued or {}).get("job_id", ""))

    @property
    def cluster(self) -> str:
        """The cluster on which the attempt ran or was queued; '' if unknown."""
        events = (event for event in (*reversed(self.events), self.queued) if event)
        return next((str(event["cluster"]) for event in events if event.get("cluster")), "")

    @property
    def is_final(self) -> bool:
        """True if the attempt has ended for good; a run that only stopped may be in the queue again."""
        return self.last_event in ("ended", "unqueued")

    @property
    def needs_queue(self) -> bool:
        """True if the state can only be determined from Slurm's queue."""
        if self.summary:
            return False
        return bool(self.claim or (self.queued and not self.is_local and not self.is_final))

    @property
    def stopped_by(self) -> str:
        """The name of the first signal that the run received."""
        return next((str(e.get("signal", "")) for e in self.events if e["event"] == "signal"), "")

    def is_process_alive(self, event: Record) -> bool:
        """True if the process that wrote this event is alive; for other hosts, judged by the heartbeat."""
        if is_here(event):
            return True
        if event.get("host") != socket.gethostname():
            return self.silence() < HEARTBEAT_SECONDS
        return not Path("/proc/self").exists() and _pid_exists(event.get("pid", 0))

    def silence(self) -> float:
        """Return the seconds since the run's events were written, by the file server's clock; infinity if unknown.

        The time in the last event, from another host's clock, only shows whether the file is a later copy.
        """
        path = self.run.folder / run_files.EVENTS
        newest = max((float(event.get("time", 0)) for event in (self.queued, *self.events) if event), default=0.0)
        try:
            copied = path.stat().st_mtime - newest > CLOCKS_APART
            return math.inf if copied else shared_fs.age(path, self.run.folder)
        except OSError:
            return math.inf


def find_owner(run: StudyRun) -> Record | None:
    """Return the event of the live process that owns a run outside Slurm: its trainer, or the `submit` it waits in."""
    evidence = RunEvidence.read(run)
    started = [event for event in evidence.events if event["event"] in ("started", "resumed")]
    candidates = [*reversed(started), *([evidence.queued] if evidence.queued else [])]
    return next((event for event in candidates if evidence.is_process_alive(event)), None)


def is_here(event: Record) -> bool:
    """True if the process that wrote this event is alive on this machine, even if the machine was renamed."""
    return bool(event.get("born")) and processes.identity(event.get("pid", 0)) == event["born"]


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
