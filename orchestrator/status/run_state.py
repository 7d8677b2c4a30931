"""Files first, then the scheduler: the truth about each run.

`done` is said only by summary.json. A run that is in no queue and left no end mark is `lost`, with the likely cause;
what was learnt of its end is written into its events, because Slurm soon forgets.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.slurm.queue_view import Scheduler
from ablatrix.orchestrator.status import diagnosis, removed_files
from ablatrix.orchestrator.store import (
    job_log,
    run_folder,
    run_progress,
    selected_cluster,
    shared_fs,
    submit_attempts,
)
from ablatrix.orchestrator.store.study_dir import LOGS, Study, StudyRun
from ablatrix.trainer.rundir import loss_digest, processes, run_files
from ablatrix.trainer.rundir.events import append_event, may_requeue, read_events
from ablatrix.trainer.rundir.files import is_own, owner_name

STATES = ("planned", "queued", "running", "stopped", "done", "failed", "lost", "cancelled")
ACTIVE = ("queued", "running")
HEARTBEAT_SECONDS = 120  # a living trainer on another host has written within this time
CLOCKS_APART = 3600  # seconds; files of an older record have been copied since, their times say nothing

ALIVE = ("started", "resumed", "heartbeat", "checkpoint", "signal", "requeued")
ENDED = ("stopped", "failed", "ended", "unqueued", "finished")

UNEXPLAINED = {
    "failed": "failed without giving a reason; see logs RUN",
    "lost": "ended without giving a reason; see logs RUN",
    "cancelled": "cancelled",
    "stopped": "stopped; submit again to continue",
}

Record = dict[str, Any]


@dataclass(frozen=True)
class RunState:
    """One run, now."""

    run: StudyRun
    state: str = "planned"
    reason: str = ""
    iter: int = 0
    max_iters: int = 0
    loss: float | None = None
    val_loss: float | None = None
    compared: float | None = None  # last value of a column that only this study has, because it is compared by it
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    node: str = ""
    job_id: str = ""
    confirmed: bool = False  # the queue shows our token on this job, or the job itself has said its id
    attempt: int = 0  # newest claim; the next attempt is one more
    requeued: bool = False  # stopped, and in the queue again
    log: str = ""  # in the study's folder of logs, as far as it is known to have been written
    missing: tuple[str, ...] = ()  # files that it had when it was done, and that somebody has removed
    altered: str = ""  # how its loss.csv differs from what the run wrote

    @property
    def active(self) -> bool:
        """Does somebody work at it, or will somebody without a new submit?"""
        return self.state in ACTIVE or self.requeued


def collect(study: Study, scheduler: Scheduler | None = None) -> list[RunState]:
    """The state of every run of a study. Calls squeue at most once, and only if a job of the study may be in it.

    Raises OSError where a file is there that cannot be read: guessing would invent a state.
    """
    scheduler = scheduler or Scheduler()
    selected_cluster.select(study.cluster)
    read = [_Files.read(run) for run in study.runs]
    if any(files.asks_scheduler for files in read):
        if scheduler.user is None:
            scheduler.user = "" if is_own(study.folder) else owner_name(study.folder).removeprefix("user ")
        scheduler.refresh()
    by_token = _by_token(scheduler.jobs or {})
    states = [_judge(files, scheduler.jobs, by_token) for files in read]
    hidden = [
        scheduler.blind_spot(f.cluster) if s.reason in (_GONE, _SILENT) else ""
        for s, f in zip(states, read, strict=True)
    ]
    ended = commands.ended_jobs(
        s.job_id for s, why in zip(states, hidden, strict=True) if s.reason == _GONE and not why
    )
    return [
        _explained(_settled(state, files, why, scheduler.jobs or {}, ended))
        for state, files, why in zip(states, read, hidden, strict=True)
    ]


def _settled(state: RunState, files: _Files, hidden: str, jobs: commands.Queue, ended: commands.Queue) -> RunState:
    """The state of a run whose job is in no answer, from what else is known; any other state as it is."""
    if hidden:
        return _judge_unseen(state, files, hidden)
    if state.reason == _GONE:
        return _buried(state, files, _own(ended.get(state.job_id) or jobs.get(state.job_id), files))
    return replace(state, reason="") if state.reason == _SILENT else state


def _explained(state: RunState) -> RunState:
    """The state with a reason where a reader needs one: the process that ended the run may have given none."""
    if state.reason or state.state not in UNEXPLAINED:
        return state
    return replace(state, reason=UNEXPLAINED[state.state])


def state_of(study: Study, run: StudyRun, scheduler: Scheduler | None = None) -> RunState:
    """The state of one run."""
    return collect(replace(study, runs=[run]), scheduler)[0]


def reasons(states: Sequence[RunState]) -> dict[str, tuple[str, str]]:
    """Run id -> (state, reason)."""
    return {state.run.id: (state.state, state.reason) for state in states}


def _own(job: commands.Job | None, files: _Files) -> commands.Job | None:
    """The job, unless it is another one that got the same id after a controller lost its state."""
    token = files.queued.get("token") if files.queued else None
    return job if job and job.token in (None, token) else None


_GONE = "gone from the queue"
_SILENT = "no answer from Slurm"


@dataclass(frozen=True)
class _Files:
    """What a run's folder says."""

    run: StudyRun
    summary: Record | None
    events: list[Record]  # of the last attempt, without its `submitting` and `queued`
    queued: Record | None  # how that attempt was queued
    attempt: int
    claim: submit_attempts.Claim | None  # of an attempt that has no `queued` event yet
    max_iters: int
    missing: tuple[str, ...]
    altered: str = ""

    @classmethod
    def read(cls, run: StudyRun) -> _Files:
        events = read_events(run.folder, certain=True, newest_only=("heartbeat", "checkpoint"))
        start = max((i for i, event in enumerate(events) if event["event"] == "submitting"), default=0)
        latest = [event for event in events[start:] if event["event"] != "submitting"]
        queued = next((event for event in reversed(latest) if event["event"] == "queued"), None)
        known = max((e.get("attempt", 0) for e in latest if e["event"] in ("queued", "unqueued")), default=0)
        attempt = max(submit_attempts.newest(run.folder), known)  # a purge may have taken the claims
        summary = run_folder.read_summary(run.folder)
        return cls(
            run,
            summary,
            [event for event in latest if event["event"] != "queued"],
            queued,
            attempt,
            submit_attempts.read(run.folder, attempt) if attempt > known else None,
            run_folder.planned_steps(run.folder),
            removed_files.of_run(run.folder, summary, events) if summary else (),
            loss_digest.find_change(run.folder, summary) if summary else "",
        )

    @property
    def life(self) -> Record | None:
        """The last event that says whether the run lives."""
        return next((e for e in reversed(self.events) if e["event"] in ALIVE + ENDED), None)

    @property
    def job_id(self) -> str:
        """Id of the run's job: what its trainer said of itself, else what its submit has recorded."""
        queued = self.queued or {}
        own = self._own_job_id if queued.get("launcher") != "local" else ""
        return own or str(queued.get("job_id", ""))

    @property
    def cluster(self) -> str:
        """The cluster that the attempt was queued on, or has run on; '' where nothing says it."""
        events = (event for event in (*reversed(self.events), self.queued) if event)
        return next((str(event["cluster"]) for event in events if event.get("cluster")), "")

    @property
    def names_itself(self) -> bool:
        """True if the trainer has written the id of its job."""
        return bool(self._own_job_id)

    @property
    def _own_job_id(self) -> str:
        started = (e for e in reversed(self.events) if e["event"] in ("started", "resumed"))
        return str(next(started, {}).get("job_id", ""))

    @property
    def asks_scheduler(self) -> bool:
        if self.summary:
            return False
        if self.claim:
            return True
        ended = self.life is not None and self.life["event"] in ENDED
        return bool(self.queued and self.queued.get("launcher") != "local" and not (ended and self.life_is_final))

    @property
    def life_is_final(self) -> bool:
        """A failed or ended run stays so; a stopped one may be in the queue again."""
        return self.life is not None and self.life["event"] in ("ended", "unqueued")


ByToken = dict[tuple[str, str], commands.Job]  # (token, index in the array, or "" for a plain job) -> job


def _by_token(jobs: dict[str, commands.Job]) -> ByToken:
    """The jobs that carry a token; of two with the same one that runs, else one that waits."""
    found: ByToken = {}
    for job in sorted(jobs.values(), key=lambda job: (job.state in commands.RUNNING, job.state in commands.PENDING)):
        if job.token:
            found[job.token, job.id.partition("_")[2]] = job
    return found


def _judge(files: _Files, jobs: dict[str, commands.Job] | None, by_token: ByToken) -> RunState:
    state = _progress(files)
    if files.summary:
        reason = "; ".join(filter(None, (_how_done(files.summary), removed_files.told(files.missing, files.altered))))
        return replace(state, state="done", reason=reason, missing=files.missing, altered=files.altered)
    if files.claim:
        return _judge_claim(state, files, jobs, by_token)
    if files.life and files.life["event"] == "finished":
        return _judge_finished(state, files)
    if files.queued is None:
        return _judge_process(state, files) if files.events else state
    if files.queued.get("launcher") == "local":
        return _judge_process(state, files)
    return _judge_job(state, files, jobs, by_token)


def _judge_finished(state: RunState, files: _Files) -> RunState:
    """The run has said that it is done, after it had written its summary.json, and there is none."""
    if _last_sign(files) < shared_fs.delay(files.run.folder):
        return replace(state, state="running", reason=f"finished; its {run_files.SUMMARY} is not seen here yet")
    reason = f"it finished, but its {run_files.SUMMARY} is gone (removed since): submit --retry writes it again"
    return replace(state, state="lost", reason=reason, missing=(run_files.SUMMARY,))


def _how_done(summary: Record) -> str:
    if summary.get("stopped_early"):
        step = summary.get("iters")
        return f"stopped early{'' if step is None else f' at step {step}'}: no better evaluation"
    return "diverged" if summary.get("diverged") else ""


def _stopped(state: RunState, life: Record) -> RunState:
    """Ended, with a checkpoint unless it must begin `anew`; by: who asked for it, where it was no signal."""
    then = "start it anew" if life.get("anew") else "continue"
    by = f" by {life['by']}" if life.get("by") and not may_requeue(life) else ""
    refused = f"; not requeued ({life['reason']})" if life.get("reason") else ""
    return replace(state, state="stopped", reason=f"stopped at step {state.iter}{by}{refused}; submit again to {then}")


def _judge_claim(state: RunState, files: _Files, jobs: dict[str, commands.Job] | None, by_token: ByToken) -> RunState:
    """A submit has claimed the run and not said yet under which id: the run's own events may, or its token."""
    claim = files.claim
    assert claim is not None
    job = by_token.get((claim.token, str(claim.index) if claim.tasks > 1 else ""))
    job_id = job.id if job else files.job_id
    if job_id:
        found = replace(files, claim=None, queued={"launcher": "slurm", "job_id": job_id, "token": claim.token})
        return _judge(found, jobs, by_token)
    if files.life and files.life["event"] in ALIVE:
        return _judge_process(state, files)
    if (jobs is None and commands.available()) or not submit_attempts.is_void(files.run.folder, files.attempt):
        return replace(state, state="queued", reason="being submitted; its job is not known yet")
    return replace(state, reason="an earlier submit ended before its job was queued")


def _find_job(files: _Files, jobs: dict[str, commands.Job], by_token: ByToken) -> commands.Job | None:
    """The run's job in the queue: the one that carries its token, as a recorded id may be another job's."""
    token = str((files.queued or {}).get("token", ""))
    return by_token.get((token, files.job_id.partition("_")[2])) or _own(jobs.get(files.job_id), files)


def _judge_job(state: RunState, files: _Files, jobs: dict[str, commands.Job] | None, by_token: ByToken) -> RunState:
    life = files.life["event"] if files.life else ""
    if files.life and files.life_is_final:
        return replace(state, state=_said(files.life, "planned"), reason=files.life.get("reason", ""))
    if files.life and life == "stopped" and not may_requeue(files.life):
        return _stopped(state, files.life)  # though its job may go on with other runs; nobody starts it again
    if life == "failed":
        return replace(state, state="failed", reason=str((files.life or {}).get("reason", "")))
    if jobs is None:  # the files' last word
        last = {"": "queued", "stopped": "stopped"}.get(life, "running")
        return replace(state, state=last, reason=_SILENT)
    job = _find_job(files, jobs, by_token)
    if job:
        state = replace(state, job_id=job.id, confirmed=bool(job.token) or files.names_itself)
    if job and not commands.is_known(job.state):  # a newer Slurm's word: no end is concluded from it
        return replace(state, state={"": "queued", "stopped": "stopped"}.get(life, "running"))
    if job and job.state in commands.PENDING:
        if files.events:
            reason = f"requeued at step {state.iter}, waiting ({commands.waits_for(job.reason)})"
            return replace(state, state="stopped", reason=reason, requeued=True)
        return replace(state, state="queued", reason=commands.waits_for(job.reason))
    if job and job.state in commands.RUNNING:
        return replace(state, state="running", node=job.node or state.node)
    return replace(state, state="lost", reason=_GONE)


def _judge_unseen(state: RunState, files: _Files, why: str) -> RunState:
    """A run whose job Slurm cannot show here: judged by what it writes. `why` its job is not visible."""
    life = files.life["event"] if files.life else ""
    if life == "stopped":
        return _stopped(state, files.life or {})
    if not life:
        return replace(state, state="queued", reason=f"not known to have started; {why}")
    if life == "requeued":
        return replace(state, state="stopped", requeued=True, reason=f"requeued at step {state.iter}; {why}")
    assert files.life is not None
    if _process_lives(files.life, files):
        return replace(state, state="running", reason=f"judged by its heartbeat: {why}")
    silence = _last_sign(files)
    since = "" if math.isinf(silence) else f" for {silence / 60:,.0f} min"
    reason = f"no sign of life{since}, it has ended or been requeued; {why}"
    return replace(state, state="stopped", reason=reason)


def _judge_process(state: RunState, files: _Files) -> RunState:
    """A run of the local launcher, or one that somebody started by hand: is its process there?"""
    life, event = files.life, files.life["event"] if files.life else ""
    if life and event in ("failed", "ended"):
        return replace(state, state=_said(life, "failed"), reason=life.get("reason", ""))
    if life and event == "stopped":
        return _stopped(state, life)
    if life and event == "unqueued":
        return replace(state, state="planned", reason=str(life.get("reason", "")))
    witness = next((e for e in reversed(files.events) if e["event"] in ("started", "resumed")), None)
    if witness is None:
        alive = files.queued is not None and _process_lives(files.queued, files)
        return replace(state, state="queued" if alive else "planned")
    if _process_lives(witness, files):
        return replace(state, state="running", node=str(witness.get("host", "")))
    return replace(state, state="lost", reason=diagnosis.likely(files.run.folder))


def _said(event: Record, otherwise: str) -> str:
    """The state that an event speaks of."""
    return event["state"] if event.get("state") in STATES else otherwise


def owner(run: StudyRun) -> Record | None:
    """The event of the living process that works at a run without Slurm: its trainer, else its waiting `submit`."""
    files = _Files.read(run)
    started = [event for event in files.events if event["event"] in ("started", "resumed")]
    candidates = [*reversed(started), *([files.queued] if files.queued else [])]
    return next((event for event in candidates if _process_lives(event, files)), None)


def _process_lives(event: Record, files: _Files) -> bool:
    """True if the process that wrote this event lives. From another host only its heartbeat can tell."""
    if is_here(event):
        return True
    if event.get("host") != socket.gethostname():
        return _last_sign(files) < HEARTBEAT_SECONDS
    return not Path("/proc/self").exists() and _pid_exists(event.get("pid", 0))


def is_here(event: Record) -> bool:
    """True if the process that wrote this event lives on this machine, whatever the machine is called now."""
    return bool(event.get("born")) and processes.identity(event.get("pid", 0)) == event["born"]


def _last_sign(files: _Files) -> float:
    """Seconds since something was written to the run's events, by no host's clock but the file server's.

    The time in the last event is of a host whose clock may be wrong: it tells only that the file is no late copy.
    """
    path = files.run.folder / run_files.EVENTS
    newest = max((float(event.get("time", 0)) for event in (files.queued, *files.events) if event), default=0.0)
    try:
        copied = path.stat().st_mtime - newest > CLOCKS_APART
        return math.inf if copied else shared_fs.age(path, files.run.folder)
    except OSError:
        return math.inf


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _buried(state: RunState, files: _Files, job: commands.Job | None) -> RunState:
    """The end of a job that left the queue without an end mark, recorded once it is known."""
    life = files.life["event"] if files.life else ""
    if job and job.state == commands.VANISHED:
        job = replace(job, state="CANCELLED") if _never_started(files, state.job_id) else None
    verdict = job.state if job else ""
    if (
        verdict and verdict not in commands.ENDED
    ):  # it came back between two questions, or is in a state of a newer Slurm
        return replace(state, state="queued" if verdict in commands.PENDING else "running", reason="")
    if verdict == "CANCELLED" or (not verdict and life == "stopped" and _stopped_by(files) == "SIGTERM"):
        state = replace(state, state="cancelled", reason="cancelled in Slurm (scancel)")
    elif life == "stopped":
        return _stopped(state, files.life or {})
    elif verdict == "COMPLETED" and job and job.exit_code in ("", "0:0") and files.life and _last_sign(files) < 60:
        return replace(state, state="running", reason="ending: its last files are not visible yet")
    elif submit_attempts.unseen(files.run.folder, files.attempt):
        return replace(state, state="running", reason="its job has ended; what it wrote last may not be seen here yet")
    else:
        reason = diagnosis.likely(files.run.folder, job, job_log.of_unstarted(files.run.folder, state.job_id))
        state = replace(state, state="lost", reason=reason)
    if verdict:
        with contextlib.suppress(OSError):  # somebody else's study: what was learnt is shown, not kept
            append_event(files.run.folder, "ended", state=state.state, reason=state.reason, slurm=verdict)
    return state


def _never_started(files: _Files, job_id: str) -> bool:
    """True if no job ever began this attempt. Without a log folder none could, so then its absence says nothing."""
    folder = files.run.folder
    begun = submit_attempts.has_started(folder, files.attempt) or job_log.find_of_job(folder, job_id)
    return (folder.parent / LOGS).is_dir() and not begun


def _stopped_by(files: _Files) -> str:
    signals = [e.get("signal", "") for e in files.events if e["event"] == "signal"]
    return str(signals[0]) if signals else ""


def _log(files: _Files) -> str:
    """The file that a run's `submit` has left among the study's logs."""
    queued = files.queued or {}
    kind = {"local": "out", "sbatch": "sbatch"}.get(str(queued.get("launcher")), "")
    return f"{queued.get('token')}.{kind}" if kind and queued.get("token") and files.life else ""


def _progress(files: _Files) -> RunState:
    """What the run's files say of its progress; its state is judged from there."""
    return RunState(
        files.run,
        max_iters=files.max_iters,
        attempt=files.attempt,
        job_id=files.job_id if files.queued else "",
        log=_log(files),
        node=next((str(e.get("host")) for e in reversed(files.events) if e["event"] in ALIVE), ""),
        **run_progress.read(files.run.folder, files.max_iters),
    )


def as_json(states: Sequence[RunState], scheduler: Scheduler) -> str:
    """The states for scripts: one object with `runs` and what is known of the controller. What JSON has not is null."""
    runs: list[Record] = [
        {
            "id": state.run.id,
            "cell": state.run.cell,
            "seed": state.run.seed,
            "state": state.state,
            "requeued": state.requeued,
            **{name: getattr(state, name) for name in ("reason", "iter", "max_iters", "loss", "val_loss", "compared")},
            **{name: getattr(state, name) for name in ("tokens_per_s", "seconds_left", "node", "job_id", "attempt")},
            "missing": state.missing,
            "folder": str(state.run.folder),
        }
        for state in states
    ]
    runs = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in run.items()} for run in runs]
    return json.dumps({"controller_silent_since": scheduler.silent_since, "runs": runs}, indent=1)
