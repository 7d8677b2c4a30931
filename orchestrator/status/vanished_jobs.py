"""Runs whose job the queue does not show, judged by what Slurm still knows, by the heartbeat, or by the log."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ablatrix.orchestrator.slurm import job_parsing
from ablatrix.orchestrator.status import diagnosis
from ablatrix.orchestrator.status.state_rules import stopped
from ablatrix.orchestrator.store import job_log, submit_attempts
from ablatrix.orchestrator.store.study_dir import LOGS
from ablatrix.trainer.rundir.events import append_event

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.run_evidence import RunEvidence
    from ablatrix.orchestrator.status.run_state import RunState


def judge_by_heartbeat(state: RunState, evidence: RunEvidence, why: str) -> RunState:
    """Return the state of a run whose job this machine cannot see, judged by what the run writes.

    why: the reason that the job is not visible.
    """
    event = evidence.last_event
    if event == "stopped":
        return stopped(state, evidence)
    if not event:
        return replace(state, state="queued", reason=f"not known to have started; {why}")
    if event == "requeued":
        return replace(state, state="stopped", requeued=True, reason=f"requeued at step {state.iter}; {why}")
    if evidence.is_process_alive(evidence.life):
        return replace(state, state="running", reason=f"judged by its heartbeat: {why}")
    silence = evidence.silence()
    since = "" if math.isinf(silence) else f" for {silence / 60:,.0f} min"
    return replace(state, state="stopped", reason=f"no sign of life{since}; it has ended or been requeued; {why}")


def resolve(state: RunState, evidence: RunEvidence, job: job_parsing.Job | None) -> RunState:
    """Return the state of a run whose job has left the queue without an end mark in the run's events.

    job: what Slurm still knows about the job. The verdict is recorded in the events because Slurm soon forgets it.
    """
    if job and job.state == job_parsing.VANISHED:
        job = replace(job, state="CANCELLED") if _never_started(evidence, state.job_id) else None
    verdict = job.state if job else ""
    if verdict and verdict not in job_parsing.ENDED:  # requeued between two queries, or in a newer Slurm's state
        return replace(state, state="queued" if verdict in job_parsing.PENDING else "running")
    was_stopped = evidence.last_event == "stopped"
    if verdict == "CANCELLED" or (not verdict and was_stopped and evidence.stopped_by == "SIGTERM"):
        ours = submit_attempts.is_marked_cancelled(evidence.run.folder, evidence.attempt)
        by = "cancelled (ablatrix cancel)" if ours else "cancelled in Slurm (scancel)"
        state = replace(state, state="cancelled", reason=by)
    elif was_stopped:
        return stopped(state, evidence)
    elif job and _has_just_completed(job, evidence):
        return replace(state, state="running", reason="ending: its last files are not visible yet")
    elif submit_attempts.may_be_unseen(evidence.run.folder, evidence.attempt):
        return replace(state, state="running", reason="its job has ended; its last files may not be visible here yet")
    else:
        log = job_log.of_unstarted(evidence.run.folder, state.job_id)
        state = replace(state, state="lost", reason=diagnosis.describe_end(evidence.run.folder, job, log))
    if verdict:
        with contextlib.suppress(OSError):  # the study is another user's
            append_event(evidence.run.folder, "ended", state=state.state, reason=state.reason, slurm=verdict)
    return state


def _never_started(evidence: RunEvidence, job_id: str) -> bool:
    """True if no job has begun this attempt. Without the log folder, the absence of a log proves nothing."""
    folder = evidence.run.folder
    started = submit_attempts.has_started(folder, evidence.attempt) or job_log.find_of_job(folder, job_id)
    return (folder.parent / LOGS).is_dir() and not started


def _has_just_completed(job: job_parsing.Job, evidence: RunEvidence) -> bool:
    succeeded = job.state == "COMPLETED" and job.exit_code in ("", "0:0")
    return succeeded and bool(evidence.life) and evidence.silence() < 60
