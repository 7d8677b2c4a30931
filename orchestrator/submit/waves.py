"""Queue as many runs as the site's limits allow, and the rest in waves: by the next submit, by --wait, or by a job.

The waiting runs are recorded in the study's folder (wave_order.py). A follow-up job (follow_up.py) starts when one of
the study's arrays has ended, and queues what fits then and another follow-up behind it. A study in stages continues in
the same way: when all its arrays have ended, the follow-up queues the runs due by their results (report/next_stage.py).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ablatrix.orchestrator.report import next_stage
from ablatrix.orchestrator.slurm import commands, helper_jobs, launchers, site_limits
from ablatrix.orchestrator.slurm.batch import Batch
from ablatrix.orchestrator.status import cost, study_state
from ablatrix.orchestrator.store import submit_attempts
from ablatrix.orchestrator.study.run_order import in_queue_order
from ablatrix.orchestrator.submit import queueing, wave_order
from ablatrix.orchestrator.submit.notifications import Notifier
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.errors import AblatrixError, RunError, UserError

if TYPE_CHECKING:
    from ablatrix.orchestrator.report.stages import Stages
    from ablatrix.orchestrator.slurm.scheduler import Scheduler
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.store.study_dir import Study
    from ablatrix.orchestrator.submit.queueing import Facts
    from ablatrix.orchestrator.submit.wave_order import Order

RETRY_SECONDS = 60.0  # until a follow-up that could queue nothing is requeued, and between polls of --wait

Say = Callable[[str], object]


def queue(
    study: Study,
    order: Order,
    chosen: Sequence[RunState],
    states: Sequence[RunState],
    say: Say,
    *,
    stages: Stages | None = None,
    facts: Facts | None = None,
) -> list[str]:
    """Queue as many of these runs as fit, and behind them the report or a follow-up job; return the arrays' ids.

    states: current states of all runs; stages: the study's, if known; facts: see `queueing.prepare`. Raises RunError
    if nothing could be queued and nothing will make room.
    """
    active = [state for state in states if state.active]
    wave = _Wave(study, order, queueing.arrays_of(active), len({state.job_id for state in active}), say, facts=facts)
    left = wave.queue(chosen)
    queueing.record_facts(left, facts or {})
    batch = Batch(study, [], "", order.settings, order.code, order.exports)
    others = _still_waiting(study, {state.run.id for state in chosen})  # of a concurrent submit
    stages = stages or next_stage.find_stages(study, states)
    later = stages.following if stages.waiting else 0
    if left:
        waiting = {**others, **{state.run.id: state.attempt for state in left}}
        _queue_follow_up(batch, waiting, later, wave)
    elif later and not others and (wave.before or wave.arrays):
        _queue_follow_up(batch, {}, later, wave)
    elif not others and wave.arrays:
        (study.folder / wave_order.RECORD).unlink(missing_ok=True)
        with contextlib.suppress(commands.ControllerError):  # a follow-up that stays finds nothing to do
            helper_jobs.cancel(study, [helper_jobs.FOLLOW_UP])
        if order.report:
            say(helper_jobs.queue_report(batch, [*wave.before, *wave.arrays]))
    return wave.arrays


def _still_waiting(study: Study, without: Collection[str]) -> dict[str, int]:
    """Return id -> newest attempt of the order's other runs that no submit has claimed since."""
    order, folders = wave_order.read(study), {run.id: run.folder for run in study.runs}
    runs = order.runs if order else {}
    return {
        name: attempt
        for name, attempt in runs.items()
        if name not in without and name in folders and submit_attempts.newest(folders[name]) == attempt
    }


def _queue_follow_up(batch: Batch, waiting: Mapping[str, int], later: int, wave: _Wave) -> None:
    """Record which runs wait for room, or that later runs wait for results, and queue the follow-up job."""
    order, say = wave.order, wave.say
    order.write(batch.study, runs=dict(waiting), staged=later > 0, most=wave.most)
    arrays = [f"afterany:{array}" for array in (*wave.before, *wave.arrays)]
    if waiting:
        text, between = f"{_runs(len(waiting), 'wait')} for room in the queue ({wave.reason})", "?"  # `?`: any of them
        goal = "queues them when jobs of this study have ended"
    else:
        text, between = f"up to {_runs(later, 'follow')}, depending on results", ","
        goal = "queues those that are needed when these have ended"
    try:
        if order.problem:
            raise RunError(order.problem)
        if not arrays:
            raise RunError("this study has no queued job that it could wait for")
        job = helper_jobs.queue(batch, helper_jobs.FOLLOW_UP, between.join(arrays))
    except (AblatrixError, OSError) as error:
        full = isinstance(error, commands.ControllerError) and site_limits.is_limit(error)
        why = "there is no room for it either" if full else error
        say(f"{text}; no follow-up job ({why}): rerun submit when jobs have ended, or use submit --wait")
        return
    say(f"{text}; job {job} {goal}")


class _Wave:
    """The arrays submitted by one call of `queue`."""

    def __init__(
        self, study: Study, order: Order, before: Sequence[str], jobs_before: int, say: Say, *, facts: Facts | None
    ) -> None:
        self.study, self.order, self.say, self.facts = study, order, say, facts
        self.before, self.jobs_before = before, jobs_before
        self.launcher, self.cluster = launchers.make(order.launcher), commands.cluster_name()
        self.arrays: list[str] = []
        self.reason = ""
        self.most = order.most
        self._refused = False

    def queue(self, chosen: Sequence[RunState]) -> list[RunState]:
        """Queue arrays until all runs are queued or there is no room; return the remaining runs."""
        waiting, settings, cluster = list(chosen), self.order.settings, site_limits.array_limits()
        jobs = -(-len(waiting) // settings.runs_per_job)
        budget = self._budget(jobs)
        whole = budget >= jobs
        # two arrays while others wait, so that the next runs can be queued as soon as one of the two has ended
        size = min(cluster.tasks, jobs if whole else -(-budget // 2), 2 * self.most or jobs)
        chain = settings.max_parallel is not None and self.jobs_before + jobs > settings.max_parallel
        while waiting and budget > 0 and size > 0:
            members = [(state.run, state.attempt + 1) for state in waiting]
            first = next(queueing.split(members, settings, min(size, budget), cluster.script_bytes))
            count = sum(map(len, first))
            refused = self._queue_array(waiting[:count], chain)
            waiting[:count] = refused
            if refused:
                self._refused = True
                size = self.most = max(len(first) > 1, (len(first) - 1) // 2)  # half, less the follow-up's place
                continue
            budget -= len(first)
            if self._refused and waiting:  # leave the rest of the room for the follow-up job
                break
        self.most = max(1, self.most) if self._refused else 0
        if waiting and not self.arrays and not any(job.alive for job in commands.queue().values()):
            raise RunError(f"nothing could be queued, though no job of yours is in the queue: {self.reason}")
        return waiting

    def _budget(self, jobs: int) -> int:
        """Return how many jobs to queue now, leaving room for the report or the follow-up behind them."""
        room = site_limits.find_room(self.order.settings)
        self.reason = room.reason
        if room.jobs is None or room.jobs > jobs or (room.jobs == jobs and not self.order.report):
            return jobs
        return max(1, room.jobs - 1)  # always try one: sites differ in what counts towards a limit

    def _queue_array(self, states: Sequence[RunState], chain: bool) -> list[RunState]:
        """Queue one array of the runs that no other submit has claimed; return them if the array does not fit."""
        order, settings = self.order, self.order.settings
        members = queueing.claim(states, self.say)
        if not members:
            return []
        jobs = queueing.group(members, settings.runs_per_job)
        after = [*self.before, *self.arrays] if chain else []
        with queueing.released_on_error(members):
            batch = queueing.prepare(
                self.study,
                jobs,
                settings,
                order.code,
                order.exports,
                surroundings=order.surroundings,
                facts=self.facts,
            )
        try:
            base = queueing.queue(self.launcher, replace(batch, after=after), self.cluster)[0].partition("_")[0]
        except queueing.RefusedError as error:
            if not site_limits.is_limit(error.cause):
                raise
            self.reason = str(error)
            attempts = {run.id: attempt for run, attempt in members}
            return [replace(s, attempt=attempts[s.run.id]) for s in states if s.run.id in attempts]
        self.arrays.append(base)
        self.say(f"queued {count(len(members), 'run')} as job {base} ({self.launcher.name})")
        return []


def resume(study: Study, scheduler: Scheduler, say: Say, notifier: Notifier | None = None) -> bool:
    """Queue the waiting runs that fit now, and release jobs that Slurm holds; return False if nothing waits.

    notifier: sends the study's messages; default: a new one. Raises RunError or UserError.
    """
    states = study_state.collect(study, scheduler)
    queueing.adopt(states)
    queueing.release_held(study, scheduler.jobs, say)
    order = wave_order.read(study)
    waiting = wave_order.find_waiting(study, order, states)
    stages = next_stage.find_stages(study, states)
    (notifier or Notifier(study)).send(states, stages)
    due = _find_due(study, stages, waiting, states)
    if order and (waiting or (order.staged and (due or (stages.waiting and any(s.active for s in states))))):
        _require_within_budget(order, due, states)
        chosen = [*waiting, *due] if order.staged else waiting
        queue(study, order, chosen, states, say, stages=stages)
        return True
    (study.folder / wave_order.RECORD).unlink(missing_ok=True)
    if order and order.staged:
        for line in stages.lines:
            say(line)
        if order.report:
            say(helper_jobs.queue_report(Batch(study, [], "", order.settings, order.code, order.exports), []))
    return False


def _find_due(study: Study, stages: Stages, waiting: Sequence[RunState], states: Sequence[RunState]) -> list[RunState]:
    """Return the runs of a later stage that are due, in queue order."""
    taken = {state.run.id for state in waiting}
    due = [s for s in states if s.state == "planned" and s.run.id in stages.due and s.run.id not in taken]
    return in_queue_order(due, study.name, lambda state: state.run)


def _require_within_budget(order: Order, due: Sequence[RunState], states: Sequence[RunState]) -> None:
    """Raise UserError if runs of a later stage, each as long as the runs so far, would exceed the study's budget."""
    share = cost.devices_per_run(order.settings)
    spent = share * sum(use.end - use.start for state in states for use in state.uses) / 3600
    done = sum(state.state == "done" for state in states)
    total = spent * (1 + len(due) / max(1, done))
    if order.budget is not None and due and total > order.budget:
        raise UserError(
            f"budget: the next stage ({count(len(due), 'run')}) would bring the study to about {total:.3g} "
            f"{cost.unit(order.settings)}, over the budget of {order.budget:g}; to submit anyway, add --over-budget"
        )


def keep_going(study: Study, say: Say) -> Callable[[Sequence[RunState], Scheduler], bool]:
    """Return a function for `--wait` that queues waiting runs, unless a job will, and returns True while any wait."""
    next_look, notifier = 0.0, Notifier(study)
    printed: set[str] = set()

    def say_once(text: str) -> None:
        if text not in printed:
            printed.add(text)
            say(text)

    def go_on(states: Sequence[RunState], scheduler: Scheduler) -> bool:
        nonlocal next_look
        notifier.send(states)
        order = wave_order.read(study)
        waiting = wave_order.find_waiting(study, order, states) or (order is not None and order.staged)
        if time.monotonic() < next_look or (scheduler.jobs is None and any(state.active for state in states)):
            return bool(waiting)
        next_look = time.monotonic() + RETRY_SECONDS
        with contextlib.suppress(commands.NoAnswerError):
            jobs = commands.queue() if scheduler.jobs is None else scheduler.jobs
            if waiting and not helper_jobs.find(study, helper_jobs.FOLLOW_UP, jobs):
                return resume(study, scheduler, say_once, notifier)
            queueing.release_held(study, jobs, say)
        return bool(waiting)

    return go_on


def describe(
    study: Study,
    order: Order | None,
    states: Sequence[RunState],
    jobs: helper_jobs.Queue | None,
    stages: Stages | None = None,
) -> list[str]:
    """Return lines for `status`: which runs wait for room or for results, and the study's helper jobs."""
    waiting = wave_order.find_waiting(study, order, states)
    follow_up = helper_jobs.find(study, helper_jobs.FOLLOW_UP, jobs) if jobs else []
    lines = _describe_stages(stages, order, follow_up, jobs, states) if stages else []
    wait = f"{_runs(len(waiting), 'wait')} for room in the queue"
    if waiting and follow_up:
        hold = jobs[follow_up[-1]].hold if jobs else ""
        how = f"should queue them, but is held ({hold})" if hold else "queues them"
        lines.append(f"{wait}: job {follow_up[-1]} {how}")
    elif waiting and jobs is None:
        lines.append(f"{wait}; Slurm does not say whether a job queues them")
    elif waiting and order:
        why = f" ({order.problem})" if order.problem else ""
        lines.append(f"{wait}, and no job will queue them{why}: submit again")
    return [*lines, *helper_jobs.describe(study, jobs)]


def _describe_stages(
    stages: Stages,
    order: Order | None,
    follow_up: Sequence[str],
    jobs: helper_jobs.Queue | None,
    states: Sequence[RunState],
) -> list[str]:
    """Return lines about the progress of a study in stages and about what will queue its next runs."""
    later = {*stages.due, *stages.waiting}
    planned = sum(state.state == "planned" and state.run.id in later for state in states)
    left = min(planned, stages.following)
    if not left:
        return list(stages.lines)
    if follow_up and order and not order.runs:
        return [*stages.lines, f"up to {_runs(left, 'follow')}: job {follow_up[-1]} queues those that are needed"]
    if jobs is None and order and order.staged:
        return [*stages.lines, f"up to {_runs(left, 'follow')}; Slurm does not say whether a job queues them"]
    why = f" ({order.problem})" if order and order.problem else ""
    when = " when the runs have ended" if any(state.active for state in states) else ""
    return [*stages.lines, f"up to {_runs(left, 'follow')}, and no job will queue them{why}: submit again{when}"]


def _runs(number: int, verb: str) -> str:
    """Return a phrase such as `1 run waits` or `3 runs wait`."""
    return f"1 run {verb}s" if number == 1 else f"{number} runs {verb}"
