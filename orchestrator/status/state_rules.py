"""Rules that derive a run's state from its files and from Slurm's queue.

Files take precedence: only summary.json means `done`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from ablatrix.orchestrator.slurm import commands, job_parsing
from ablatrix.orchestrator.status import diagnosis, removed_files
from ablatrix.orchestrator.status.run_evidence import ALIVE, RunEvidence
from ablatrix.orchestrator.status.run_state import STATES, RunState
from ablatrix.orchestrator.store import run_progress, shared_fs, submit_attempts
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.events import may_requeue


class JobIndex:
    """Slurm's queue, indexed by token and by id. answered: False while the controller does not answer."""

    def __init__(self, jobs: Mapping[str, job_parsing.Job] | None) -> None:
        self.answered = jobs is not None
        self.jobs = jobs or {}
        self._by_token: dict[tuple[str, str], job_parsing.Job] = {}  # (token, index in the array; "" for a plain job)
        # of two jobs with the same token, the running one counts, else the waiting one
        for job in sorted(self.jobs.values(), key=lambda job: (job.state in job_parsing.RUNNING, job.alive)):
            if job.token:
                self._by_token[job.token, job.id.partition("_")[2]] = job

    def find(self, token: str, index: str, job_id: str = "") -> job_parsing.Job | None:
        """Return the job with this token and index, else the job with this id."""
        return self._by_token.get((token, index)) or owned(self.jobs.get(job_id), token)


def owned(job: job_parsing.Job | None, token: str) -> job_parsing.Job | None:
    """Return the job unless it carries a different token: ids are reused after a controller has lost its state."""
    return job if job and job.token in (None, token) else None


def judge(evidence: RunEvidence, queue: JobIndex) -> RunState:
    """Return the state of a run. If it depends on a job that the queue does not show, its field `job` says so."""
    state = _initial(evidence)
    if evidence.summary:
        removed = removed_files.describe(evidence.missing, evidence.altered)
        reason = "; ".join(filter(None, (_describe_result(evidence.summary), removed)))
        return replace(state, state="done", reason=reason, missing=evidence.missing, altered=evidence.altered)
    if evidence.claim:
        return _judge_claim(state, evidence, queue)
    if evidence.last_event == "finished":
        return _judge_finished(state, evidence)
    if evidence.queued is None and not evidence.events:
        return state
    if evidence.queued is None or evidence.is_local:
        return _judge_process(state, evidence)
    return _judge_job(state, evidence, queue)


def _initial(evidence: RunEvidence) -> RunState:
    return RunState(
        evidence.run,
        max_iters=evidence.max_iters,
        attempt=evidence.attempt,
        job_id=evidence.job_id if evidence.queued else "",
        node=evidence.node,
        uses=evidence.uses,
        **(run_progress.read(evidence.run.folder, evidence.max_iters) if evidence.has_rows else {}),
    )


def _describe_result(summary: Mapping[str, Any]) -> str:
    if summary.get("stopped_early"):
        step = summary.get("iters")
        return f"stopped early{'' if step is None else f' at step {step}'}: no better evaluation"
    return "diverged" if summary.get("diverged") else ""


def _judge_claim(state: RunState, evidence: RunEvidence, queue: JobIndex) -> RunState:
    """Judge a run that a submit claimed without recording a job id, from its token or its own events."""
    claim = evidence.claim
    assert claim is not None
    job = queue.find(claim.token, str(claim.index) if claim.tasks > 1 else "")
    job_id = job.id if job else evidence.job_id
    if job_id:
        queued = {"launcher": "slurm", "job_id": job_id, "token": claim.token}
        return replace(judge(replace(evidence, claim=None, queued=queued), queue), unrecorded=True)
    if evidence.last_event in ALIVE:
        return _judge_process(state, evidence)
    silent = not queue.answered and commands.available()
    if silent or not submit_attempts.is_void(evidence.run.folder, evidence.attempt):
        return replace(state, state="queued", reason="being submitted; its job is not yet known")
    return replace(state, reason="an earlier submit ended before its job was queued")


def _judge_finished(state: RunState, evidence: RunEvidence) -> RunState:
    """Judge a run that recorded its end but has no summary.json, which is written first."""
    if evidence.silence() < shared_fs.visibility_delay(evidence.run.folder):
        return replace(state, state="running", reason=f"finished; its {run_files.SUMMARY} is not visible here yet")
    reason = f"it finished, but its {run_files.SUMMARY} no longer exists: submit --retry writes it again"
    return replace(state, state="lost", reason=reason, missing=(run_files.SUMMARY,))


def _judge_process(state: RunState, evidence: RunEvidence) -> RunState:
    """Judge a run of the local launcher, or a run started by hand, by its process."""
    life, event = evidence.life, evidence.last_event
    if event in ("failed", "ended"):
        return replace(state, state=_recorded_state(life, "failed"), reason=str(life.get("reason", "")))
    if event == "stopped":
        return stopped(state, evidence)
    if event == "unqueued":
        return replace(state, state="planned", reason=str(life.get("reason", "")))
    if evidence.start is None:
        alive = evidence.queued is not None and evidence.is_process_alive(evidence.queued)
        return replace(state, state="queued" if alive else "planned")
    if evidence.is_process_alive(evidence.start):
        return replace(state, state="running", node=str(evidence.start.get("host", "")))
    return replace(state, state="lost", reason=diagnosis.describe_end(evidence.run.folder))


def _judge_job(state: RunState, evidence: RunEvidence, queue: JobIndex) -> RunState:
    life, event = evidence.life, evidence.last_event
    if evidence.is_final:
        return replace(state, state=_recorded_state(life, "planned"), reason=life.get("reason", ""))
    if event == "stopped" and not may_requeue(life):
        return stopped(state, evidence)  # even if its job continues with other runs
    if event == "failed":
        return replace(state, state="failed", reason=str(life.get("reason", "")))
    last = {"": "queued", "stopped": "stopped"}.get(event, "running")
    if not queue.answered:
        return replace(state, state=last, job="unknown")
    job = queue.find(evidence.token, evidence.job_id.partition("_")[2], evidence.job_id)
    if job is None:
        return replace(state, state="lost", job="gone")
    return _follow_job(state, job, last, evidence)


def _follow_job(state: RunState, job: job_parsing.Job, last: str, evidence: RunEvidence) -> RunState:
    """Return the state of a run whose job Slurm knows. last: the state that its own events show."""
    found = partial(replace, state, job_id=job.id, confirmed=bool(job.token or evidence.own_job_id))
    if not job_parsing.is_known(job.state):  # a state of a newer Slurm, which does not end a run
        return found(state=last)
    if job.state in job_parsing.PENDING and evidence.events:
        reason = f"requeued at step {state.iter}, waiting ({job_parsing.describe_wait(job.reason)})"
        return found(state="stopped", reason=reason, requeued=True)
    if job.state in job_parsing.PENDING:
        return found(state="queued", reason=job_parsing.describe_wait(job.reason))
    if job.state in job_parsing.RUNNING:
        return found(state="running", node=job.node or state.node)
    return found(state="lost", job="gone")


def _recorded_state(event: Mapping[str, Any], default: str) -> str:
    """Return the state that an event records."""
    return str(event["state"]) if event.get("state") in STATES else default


def stopped(state: RunState, evidence: RunEvidence) -> RunState:
    """Return the state of a stopped run, with what the next submit will do."""
    life = evidence.life
    then = "start it again" if life.get("from_scratch") else "continue"
    by = f" by {life['by']}" if life.get("by") and not may_requeue(life) else ""
    refused = f"; not requeued ({life['reason']})" if life.get("reason") else ""
    return replace(state, state="stopped", reason=f"stopped at step {state.iter}{by}{refused}; submit again to {then}")
