"""Queue as many runs as the site's limits allow, and the rest in waves: by the next submit, by --wait, or by a job.

What waits for room is written down in the study's folder. A follow-up job, which runs this module, starts when one of
the study's arrays has ended, queues what fits then, and another follow-up behind it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ablatrix.orchestrator.slurm import commands, helper_jobs, launchers, site_limits
from ablatrix.orchestrator.slurm.batch import Batch
from ablatrix.orchestrator.slurm.queue_view import Scheduler
from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.status.run_state import RunState
from ablatrix.orchestrator.store import study_dir, submit_attempts
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.submit import queueing
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import AblatrixError, RunError
from ablatrix.trainer.rundir.files import PRIVATE, atomic_write

RECORD = "next-wave.json"  # in the study's folder
RETRY_SECONDS = 60.0  # before a follow-up that could queue nothing is started again, and between looks of --wait

NO_SBATCH = "sbatch: not found"

Say = Callable[[str], None]


class Order(BaseModel):
    """What is to be queued and how: all that another process needs to go on with it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    launcher: str
    settings: SlurmSettings
    exports: list[str]
    code: Path
    surroundings: dict[str, Any]  # what the runs' provenance.json shares
    report: bool = True
    runs: dict[str, int] = {}  # id -> newest attempt when it began to wait
    problem: str = ""  # why a follow-up job could not go on
    most: int = 0  # jobs that sbatch took at once after it had refused more; 0: not known

    @property
    def blocked(self) -> bool:
        """True if jobs cannot submit jobs on this site."""
        return self.problem.startswith(NO_SBATCH)

    def write(self, study: Study, **changes: Any) -> None:
        """Write the order, with these changes, into the study's folder. Raises OSError."""
        text = self.model_copy(update=changes).model_dump_json(indent=1)
        # the setup lines may hold a secret
        atomic_write(study.folder / RECORD, text + "\n", mode=PRIVATE)


def read(study: Study) -> Order | None:
    """Return the order that waits for room in the queue, None if there is none."""
    record = run_files.read_json(study.folder / RECORD)
    try:
        return Order.model_validate(record) if record else None
    except ValidationError:  # damaged, or of another version: the next submit queues the runs
        return None


def is_waiting(study: Study, ids: Iterable[str] | None = None) -> bool:
    """True if one of these runs (None: any) waits for room."""
    order = read(study)
    return bool(order and (order.runs if ids is None else set(ids) & order.runs.keys()))


def forget(study: Study, ids: Iterable[str] | None = None) -> int:
    """Let these runs (None: all) wait no longer; how many did. Raises OSError."""
    order = read(study)
    if order is None:
        return 0
    kept = {name: attempt for name, attempt in order.runs.items() if ids is not None and name not in set(ids)}
    if kept:
        order.write(study, runs=kept)
    else:
        (study.folder / RECORD).unlink(missing_ok=True)
    return len(order.runs) - len(kept)


def find_waiting(study: Study, states: Sequence[RunState]) -> list[RunState]:
    """The runs that wait for room, those that another submit has taken since left out."""
    order = read(study)
    runs = order.runs if order else {}
    return [s for s in states if not s.active and s.state != "done" and runs.get(s.run.id, -1) == s.attempt]


def queue(study: Study, order: Order, chosen: Sequence[RunState], states: Sequence[RunState], say: Say) -> list[str]:
    """Queue these runs as far as there is room, behind them the report or a follow-up job. Returns the arrays' ids.

    states: of all runs, as they are now. Raises RunError where nothing could be queued and nothing will make room.
    """
    active = [state for state in states if state.active]
    wave = _Wave(study, order, queueing.arrays_of(active), len({state.job_id for state in active}), say)
    left = wave.queue(chosen)
    batch = Batch(study, [], "", order.settings, order.code, order.exports)
    others = _still_waiting(study, {state.run.id for state in chosen})  # of a submit at the same time
    if left:
        _wait_for_room(batch, order, {**others, **{state.run.id: state.attempt for state in left}}, wave, say)
    elif not others and wave.arrays:
        (study.folder / RECORD).unlink(missing_ok=True)
        with contextlib.suppress(commands.ControllerError):  # one that stays finds nothing to do
            helper_jobs.cancel(study, [helper_jobs.FOLLOW_UP])
        if order.report:
            say(helper_jobs.queue_report(batch, [*wave.before, *wave.arrays]))
    return wave.arrays


def _still_waiting(study: Study, without: Collection[str]) -> dict[str, int]:
    """The runs of the order, other than these, that nobody has claimed since: id -> newest attempt."""
    order, folders = read(study), {run.id: run.folder for run in study.runs}
    runs = order.runs if order else {}
    return {
        name: attempt
        for name, attempt in runs.items()
        if name not in without and name in folders and submit_attempts.newest(folders[name]) == attempt
    }


def _wait_for_room(batch: Batch, order: Order, waiting: Mapping[str, int], wave: _Wave, say: Say) -> None:
    """Write down which runs wait, and queue the job that goes on with them."""
    order.write(batch.study, runs=dict(waiting), most=wave.most)
    text = f"{len(waiting)} runs wait for room in the queue ({wave.reason})"
    arrays = [*wave.before, *wave.arrays]
    try:
        if order.problem:
            raise RunError(order.problem)
        if not arrays:
            raise RunError("no job of this study is queued that it could wait for")
        job = helper_jobs.queue(batch, helper_jobs.FOLLOW_UP, "?".join(f"afterany:{array}" for array in arrays))
    except (AblatrixError, OSError) as error:
        full = isinstance(error, commands.ControllerError) and site_limits.is_limit(error)
        why = "there is no room for it either" if full else error
        say(f"{text}; no follow-up job ({why}): submit again when jobs have ended, or stay with submit --wait")
        return
    say(f"{text}; job {job} queues them when jobs of this study have ended")


class _Wave:
    """The arrays of one call."""

    def __init__(self, study: Study, order: Order, before: Sequence[str], jobs_before: int, say: Say) -> None:
        self.study, self.order, self.say = study, order, say
        self.before, self.jobs_before = before, jobs_before
        self.launcher = launchers.make(order.launcher)
        self.arrays: list[str] = []
        self.reason = ""
        self.most = order.most
        self._refused = False

    def queue(self, chosen: Sequence[RunState]) -> list[RunState]:
        """Queue arrays until all runs are queued or there is no room; the runs that are left."""
        waiting, settings, cluster = list(chosen), self.order.settings, site_limits.array_limits()
        jobs = -(-len(waiting) // settings.runs_per_job)
        budget = self._budget(jobs)
        whole = budget >= jobs
        # two arrays while others wait: as soon as one has ended the next runs can be queued, not when both have
        size = min(cluster.tasks, jobs if whole else -(-budget // 2), 2 * self.most or jobs)
        chain = settings.max_parallel is not None and self.jobs_before + jobs > settings.max_parallel
        while waiting and budget > 0 and size > 0:
            members = [(state.run, state.attempt + 1) for state in waiting]
            first = queueing.split(members, settings, min(size, budget), cluster.script_bytes)[0]
            count = sum(map(len, first))
            try:
                self._queue_array(waiting[:count], chain)
            except _NoRoomError as error:
                self.reason, self._refused = str(error), True
                size = self.most = max(len(first) > 1, (len(first) - 1) // 2)  # half, and one place for the follow-up
                waiting[:count] = error.states
                continue
            budget -= len(first)
            waiting = waiting[count:]
            if self._refused and waiting:  # the rest of the room is for the job that goes on
                break
        self.most = max(1, self.most) if self._refused else 0
        if waiting and not self.arrays and not any(job.alive for job in commands.queue().values()):
            raise RunError(f"nothing could be queued, though no job of yours is in the queue: {self.reason}")
        return waiting

    def _budget(self, jobs: int) -> int:
        """How many jobs to queue now, so that there is room for the report or the follow-up behind them."""
        room = site_limits.find_room(self.order.settings)
        self.reason = room.reason
        if room.jobs is None or room.jobs > jobs or (room.jobs == jobs and not self.order.report):
            return jobs
        return max(1, room.jobs - 1)  # one is tried in any case: what counts under a limit is the site's business

    def _queue_array(self, states: Sequence[RunState], chain: bool) -> None:
        """Queue one array of the runs that no other submit has taken. Raises _NoRoomError."""
        order, settings = self.order, self.order.settings
        members = queueing.claim(states, self.say)
        if not members:
            return
        jobs = queueing.group(members, settings.runs_per_job)
        after = [*self.before, *self.arrays] if chain else []
        with queueing.released_on_error(members):
            batch = queueing.prepare(self.study, jobs, settings, order.code, order.exports, after, order.surroundings)
        try:
            base = queueing.queue(self.launcher, batch)[0].partition("_")[0]
        except queueing.RefusedError as error:
            if not site_limits.is_limit(error.cause):
                raise
            attempts = {run.id: attempt for run, attempt in members}
            left = [replace(s, attempt=attempts[s.run.id]) for s in states if s.run.id in attempts]
            raise _NoRoomError(str(error), left) from None
        self.arrays.append(base)
        self.say(f"queued {len(members)} runs as job {base} ({self.launcher.name})")


class _NoRoomError(RunError):
    """sbatch refused an array because of a limit on submitted jobs."""

    def __init__(self, words: str, states: list[RunState]) -> None:
        super().__init__(words)
        self.states = states


def resume(study: Study, scheduler: Scheduler, say: Say) -> bool:
    """Queue what waits and has room now, and release what Slurm holds; False where nothing waits.

    Raises RunError or UserError.
    """
    states = study_state.collect(study, scheduler)
    queueing.adopt(states)
    held = queueing.release_held(study, scheduler.jobs)
    if held:
        say(held)
    order = read(study)
    waiting = find_waiting(study, states)
    if order is None or not waiting:
        (study.folder / RECORD).unlink(missing_ok=True)
        return False
    queue(study, order, waiting, states, say)
    return True


def keep_going(study: Study, say: Say) -> Callable[[Sequence[RunState], Scheduler], bool]:
    """For `--wait`: a function that goes on with what waits, and is True while something does.

    Where a follow-up job is queued, that job goes on.
    """
    next_look = 0.0
    told: set[str] = set()

    def say_once(text: str) -> None:
        if text not in told:
            told.add(text)
            say(text)

    def go_on(states: Sequence[RunState], scheduler: Scheduler) -> bool:
        nonlocal next_look
        waiting = find_waiting(study, states)
        if time.monotonic() < next_look or (scheduler.jobs is None and any(state.active for state in states)):
            return bool(waiting)
        next_look = time.monotonic() + RETRY_SECONDS
        with contextlib.suppress(commands.NoAnswerError):
            jobs = commands.queue() if scheduler.jobs is None else scheduler.jobs
            if waiting and not helper_jobs.find(study, helper_jobs.FOLLOW_UP, jobs):
                return resume(study, scheduler, say_once)
            held = queueing.release_held(study, jobs)
            if held:
                say(held)
        return bool(waiting)

    return go_on


def describe(study: Study, states: Sequence[RunState], jobs: helper_jobs.Queue | None) -> list[str]:
    """Lines for `status`: what waits for room, and the study's helper jobs."""
    waiting, order = find_waiting(study, states), read(study)
    follow_up = helper_jobs.find(study, helper_jobs.FOLLOW_UP, jobs) if jobs else []
    lines = []
    if waiting and follow_up:
        lines.append(f"{len(waiting)} runs wait for room in the queue: job {follow_up[-1]} queues them")
    elif waiting and order:
        why = f" ({order.problem})" if order.problem else ""
        lines.append(f"{len(waiting)} runs wait for room in the queue, and no job will queue them{why}: submit again")
    return [*lines, *helper_jobs.describe(study, jobs)]


def main(argv: Sequence[str] | None = None) -> int:
    """The follow-up job."""
    [folder] = sys.argv[1:] if argv is None else argv
    study = None
    try:
        study = study_dir.load_study(Path(folder))
        if not shutil.which("sbatch"):
            raise RunError(f"{NO_SBATCH} on {socket.gethostname()}, where follow-up jobs run")
        resume(study, Scheduler(), _print)
    except AblatrixError as error:
        _print(f"error: {error}")
        order = read(study) if study else None
        if study is None or (order and not isinstance(error, commands.NoAnswerError)):
            if study and order:
                order.write(study, problem=str(error))
            return 1
    _start_again(study)
    return 0


def _print(text: str) -> None:
    print(text, flush=True)


def _start_again(study: Study) -> None:
    """Have this job started again later where runs wait and no other follow-up is queued."""
    job_id = os.environ.get("SLURM_JOB_ID", "")
    if read(study) is None or not job_id:
        return
    with contextlib.suppress(commands.ControllerError):
        if set(helper_jobs.find(study, helper_jobs.FOLLOW_UP)) - {job_id}:
            return
    _print(f"no room for a follow-up; job {job_id} is queued again")
    time.sleep(RETRY_SECONDS)
    subprocess.run(["scontrol", "requeue", job_id], check=False)
    time.sleep(RETRY_SECONDS)  # Slurm ends this job now


if __name__ == "__main__":
    sys.exit(main())
