"""The states of a study's runs: files first, then one squeue, then what Slurm still knows about vanished jobs.

A run that is not queued and left no end mark is `lost`, with the likely cause.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ablatrix.orchestrator.slurm import commands
from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import state_rules, vanished_jobs
from ablatrix.orchestrator.status.run_evidence import RunEvidence
from ablatrix.orchestrator.store import selected_cluster
from ablatrix.trainer.rundir.owners import is_own, owner_name

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.store.study_dir import Study, StudyRun

UNEXPLAINED = {  # state -> reason if the run has recorded none
    "failed": "failed without giving a reason; see logs RUN",
    "lost": "ended without giving a reason; see logs RUN",
    "cancelled": "cancelled",
    "stopped": "stopped; submit again to continue",
}


def collect(study: Study, scheduler: Scheduler | None = None) -> list[RunState]:
    """Return the state of every run of a study. Calls squeue at most once, if a job of the study may be queued.

    Raises OSError for a file that exists but cannot be read, rather than guess a state.
    """
    scheduler = scheduler or Scheduler()
    selected_cluster.select(study.cluster)
    found = [RunEvidence.read(run) for run in study.runs]
    if any(evidence.needs_queue for evidence in found):
        read_queue(study, scheduler)
    queue = state_rules.JobIndex(scheduler.jobs)
    judged = [(state_rules.judge(evidence, queue), evidence) for evidence in found]
    hidden = [scheduler.blind_spot(evidence.cluster) if state.job else "" for state, evidence in judged]
    vanished = [state.job_id for (state, _), why in zip(judged, hidden, strict=True) if state.job == "gone" and not why]
    known = {**queue.jobs, **commands.ended_jobs(vanished)}
    states = [_resolve(*pair, why, known) for pair, why in zip(judged, hidden, strict=True)]
    return [_explained(state) for state in states]


def _explained(state: RunState) -> RunState:
    unexplained = not state.reason and state.state in UNEXPLAINED
    return replace(state, reason=UNEXPLAINED[state.state]) if unexplained else state


def read_queue(study: Study, scheduler: Scheduler) -> None:
    """Read the queue of the study's owner, unless the controller has just failed to answer."""
    if scheduler.user is None:
        scheduler.user = "" if is_own(study.folder) else owner_name(study.folder).removeprefix("user ")
    scheduler.refresh()


def _resolve(state: RunState, evidence: RunEvidence, hidden: str, known: commands.Queue) -> RunState:
    """Resolve the state of a run whose job the queue does not show; return any other state unchanged."""
    if hidden:
        return vanished_jobs.judge_by_heartbeat(state, evidence, hidden)
    if state.job == "gone":
        return vanished_jobs.resolve(state, evidence, state_rules.owned(known.get(state.job_id), evidence.token))
    return state


def state_of(study: Study, run: StudyRun, scheduler: Scheduler | None = None) -> RunState:
    """Return the state of one run."""
    return collect(replace(study, runs=[run]), scheduler)[0]
