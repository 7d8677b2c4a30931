"""Turn planned runs into queued jobs, each run exactly once, however many submits are running."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablatrix.orchestrator.slurm import commands, helper_jobs, job_identity, job_parsing, site_limits
from ablatrix.orchestrator.slurm.batch import Batch, Launcher, Members, job_ids
from ablatrix.orchestrator.store import code_snapshot, job_command, provenance, study_dir, submit_attempts, unused_code
from ablatrix.orchestrator.study.sbatch_options import advice
from ablatrix.trainer.rundir.console import count
from ablatrix.trainer.rundir.errors import RunError, UserError
from ablatrix.trainer.rundir.events import append_event, note, read_events

if TYPE_CHECKING:
    from ablatrix.orchestrator.status.run_state import RunState
    from ablatrix.orchestrator.store.study_dir import Study
    from ablatrix.orchestrator.study.slurm_settings import SlurmSettings

Facts = Mapping[str, Mapping[str, Any]]  # run id -> facts for its provenance.json

SCRIPT_HEAD = 1 << 16  # bytes of a job script before its commands, at most
LINE_BYTES = 64  # of a job script around each command


class RefusedError(RunError):
    """sbatch has refused a batch, and none of it is queued. cause: sbatch's message."""

    def __init__(self, cause: commands.ControllerError) -> None:
        super().__init__(f"{cause}{advice(str(cause))}")
        self.cause = cause


def claim(chosen: Sequence[RunState], say: Callable[[str], object]) -> Members:
    """Claim the next attempt of each run and return the claimed runs; `say` which ones another submit has taken."""
    members: Members = []
    taken: Members = []
    for state in chosen:
        try:
            ours = submit_attempts.take(state.run.folder, state.attempt + 1)
        except OSError as error:
            where = error.filename or state.run.folder
            raise RunError(f"cannot claim {where}: {error.strerror}") from None
        (members if ours else taken).append((state.run, state.attempt + 1))
    if taken:
        owner = submit_attempts.describe_owner(taken[0][0].folder, taken[0][1])
        say(f"{count(len(taken), 'run')} {'is' if len(taken) == 1 else 'are'} being queued by another submit ({owner})")
    return members


def arrays_of(states: Iterable[RunState]) -> list[str]:
    """Return the base ids of the jobs of these runs, each once."""
    return list(dict.fromkeys(state.job_id.partition("_")[0] for state in states if state.job_id))


def group(members: Members, per_job: int) -> list[Members]:
    """Group runs into jobs of `per_job`."""
    return [members[i : i + per_job] for i in range(0, len(members), per_job)]


def split(
    members: Members, settings: SlurmSettings, largest_array: int, script_bytes: int = site_limits.SCRIPT_BYTES
) -> Iterator[list[Members]]:
    """Yield arrays of at most `largest_array` jobs of runs, each with a script of at most `script_bytes`."""
    room = script_bytes - SCRIPT_HEAD - sum(len(line.encode()) for line in settings.setup)
    array: list[Members] = []
    free, layout = room, settings.layout
    for job in group(members, settings.runs_per_job):
        command = job_command.task_command([(run.folder, attempt) for run, attempt in job], layout)
        size = len(shlex.join(command).encode()) + LINE_BYTES
        if array and (len(array) == largest_array or size > free):
            yield array
            array, free = [], room
        array.append(job)
        free -= size
    if array:
        yield array


def take_snapshot(study: Study, own: Iterable[str] = ()) -> Path:
    """Return the folder with the code that the study's jobs will run. own: the user's own modules to include.

    Raises RunError if the folder cannot be written.
    """
    try:
        code = code_snapshot.take(study.folder.parent / study_dir.SNAPSHOTS, own)
        unused_code.prune(code.parent)
        return code
    except OSError as error:
        raise RunError(
            f"cannot write the code snapshot to {error.filename or study.folder.parent}: {error.strerror}"
        ) from None


def restore_snapshots(study: Study) -> None:
    """Restore files that were removed from the runs' code snapshots, if the running code is still the same.

    Raises RunError if a snapshot cannot be written.
    """
    folders = [run.folder for run in study.runs]
    store = study_dir.snapshot_store(study.folder)
    if any(code_snapshot.removed_files(store / name, folders) for name in provenance.snapshots_of(folders)):
        take_snapshot(study, code_snapshot.own_modules_of(folders))


def prepare(
    study: Study,
    jobs: Sequence[Members],
    settings: SlurmSettings,
    code: Path,
    exports: Sequence[str] = (),
    *,
    surroundings: Mapping[str, Any] | None = None,
    facts: Facts | None = None,
) -> Batch:
    """Make the batch of one launch: describe the claims and write each run's provenance. Nothing is queued yet.

    surroundings: the part of the provenance that all runs share, if it was recorded before. facts: those about single
    runs that are not yet in their folders.
    """
    batch = Batch(study, jobs, submit_attempts.new_token(), settings, code, exports)
    shared = dict(surroundings or provenance.collect(code))
    for index, job in enumerate(jobs):
        for run, attempt in job:
            submit_attempts.describe(run.folder, submit_attempts.Claim(attempt, batch.token, index, len(jobs)))
            # every later event belongs to this attempt; a job may start before its id is known
            append_event(run.folder, "submitting", attempt=attempt, token=batch.token)
    provenance.write((run.folder for run, _ in batch.members), shared, facts or {})
    return batch


def record_facts(states: Iterable[RunState], facts: Facts) -> None:
    """Write facts into the folders of runs that another process will queue. Raises RunError."""
    try:
        for state in states:
            provenance.add_facts(state.run.folder, facts.get(state.run.id, {}))
    except OSError as error:
        raise RunError(f"cannot write to {error.filename}: {error.strerror}") from None


def queue(launcher: Launcher, batch: Batch, cluster: str | None = None) -> list[str]:
    """Queue a batch in Slurm and record its job ids, which are looked up in the queue if sbatch's answer is lost.

    cluster: the name of the one that answers; by default it is asked. Raises RefusedError, or RunError if it is not
    known whether the job is in the queue.
    """
    try:
        base = job_identity.identify(batch.token, launcher.launch(batch))
    except commands.ControllerError as error:
        base = _lost_answer(batch, error)
    except OSError as error:  # the job script cannot be written
        release(batch.members, f"not queued: {error}")
        raise _unwritten(error, "none of it was queued") from None
    except UserError as error:  # raised before sbatch was called
        release(batch.members, f"not queued: {error}")
        raise
    ids = job_ids(base, len(batch.jobs))
    try:
        record(batch, launcher.name, ids, commands.cluster_name() if cluster is None else cluster)
    except OSError as error:
        raise _unwritten(
            error, f"its runs are queued as job {ids[0]}; the next submit finds them by its token"
        ) from None
    return ids


def release(members: Members, reason: str) -> None:
    """Release claims that will not be queued."""
    for run, attempt in members:
        note(run.folder, "unqueued", attempt=attempt, reason=reason, state="planned")


@contextlib.contextmanager
def released_on_error(members: Members) -> Iterator[None]:
    """Release these claims if anything fails in the block."""
    try:
        yield
    except OSError as error:
        release(members, f"not queued: {error}")
        raise _unwritten(error, "nothing was queued") from None
    except BaseException as error:
        release(members, f"not queued: {error}")
        raise


def _unwritten(error: OSError, outcome: str) -> RunError:
    return RunError(f"cannot write to {error.filename or 'the study'}: {error.strerror}; {outcome}; submit again later")


def record(batch: Batch, launcher: str, ids: Sequence[str], cluster: str = "") -> None:
    """Write a `queued` event for each run."""
    fields = {"launcher": launcher, "token": batch.token, **({"cluster": cluster} if cluster else {})}
    for job, job_id in zip(batch.jobs, ids, strict=True):
        for run, attempt in job:
            append_event(run.folder, "queued", job_id=job_id, attempt=attempt, **fields)


def _lost_answer(batch: Batch, error: commands.ControllerError) -> str:
    """Return the base id of the batch's job, found by its token. Raises RunError if the job is not in the queue."""
    uncertain = isinstance(error, commands.NoAnswerError)
    looks = () if isinstance(error, job_identity.AmbiguousAnswerError) else job_identity.LOOKS if uncertain else (0.0,)
    found = job_identity.find_job(batch.token, looks)
    if found:
        return found
    if uncertain:
        raise RunError(
            f"{error}; whether the jobs are queued is unknown. Submit again in {submit_attempts.VOID_AFTER:.0f} s: "
            "jobs that are in the queue by then are found, only the others are queued"
        )
    release(batch.members, "waits for room in the queue" if site_limits.is_limit(error) else str(error))
    raise RefusedError(error)


def adopt(states: Iterable[RunState]) -> None:
    """Record the job of each run whose sbatch answer was lost and whose job has been found since."""
    for state in states:
        if not state.unrecorded:
            continue
        claim, events = submit_attempts.read(state.run.folder, state.attempt), read_events(state.run.folder)
        if not any(e["event"] == "queued" and e.get("attempt") == claim.attempt for e in events):
            fields = {"attempt": claim.attempt, "token": claim.token}
            note(state.run.folder, "queued", launcher="sbatch", job_id=state.job_id, **fields)


def release_held(study: Study, jobs: Mapping[str, job_parsing.Job] | None, say: Callable[[str], object]) -> None:
    """Release jobs of the study that Slurm holds because a node could not start them, and `say` so.

    Jobs whose runs are done or queued again are released too: they end at once, while held jobs would keep the
    study's report waiting forever. jobs: the queue; by default it is read.
    """
    try:
        queued = (commands.queue() if jobs is None else jobs).values()
    except commands.ControllerError:
        return
    held = {job.id: job.token for job in queued if job_parsing.LAUNCH_FAILED in job.reason and job.token}
    own = _tokens(study) if held else set()
    ours = sorted(job for job, token in held.items() if token in own)
    if not ours:
        return
    try:
        commands.release(ours)
        say(f"released {count(len(ours), 'job')} that Slurm held because a node could not start them")
    except commands.ControllerError as error:
        say(f"cannot release {count(len(ours), 'job')} held by Slurm ({error}); cancel them and submit with --retry")


def _tokens(study: Study) -> set[str]:
    """Return the tokens of all submissions of the study's runs, and of its helper jobs."""
    return {helper_jobs.token(study, kind) for kind in (helper_jobs.FOLLOW_UP, helper_jobs.REPORT)} | {
        submit_attempts.read(run.folder, attempt).token
        for run in study.runs
        for attempt in range(1, submit_attempts.newest(run.folder) + 1)
    }
