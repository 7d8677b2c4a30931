"""Studies larger than a site's limits: what is queued, what waits for room, and who goes on with it."""

import os
from pathlib import Path

import pytest
from rich.console import Console

from ablatrix.orchestrator.slurm import commands, helper_jobs, site_limits
from ablatrix.orchestrator.slurm.batch import Batch
from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.status.run_state import RunState
from ablatrix.orchestrator.store import study_dir, submit_attempts
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.orchestrator.study.run_order import in_queue_order
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.submit import follow_up, queueing, selection, wave_order, waves
from ablatrix.orchestrator.submit.wave_order import Order
from ablatrix.orchestrator.verbs.status import status
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.events import append_event
from ablatrix.trainer.rundir.files import atomic_write
from tests.support.fake_slurm import FakeSlurm
from tests.support.plans import FIVE, expand


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """Of seven runs, in the order in which they are queued."""
    runs = in_queue_order(expand(tmp_path, FIVE), "s", lambda run: run)
    return study_dir.create_study(tmp_path / "out" / "s", "s", tmp_path / "e.yaml", {}, runs)


@pytest.fixture
def order(tmp_path: Path, study: Study) -> Order:
    return Order(
        launcher="sbatch",
        settings=SlurmSettings(setup=["module load cuda"]),
        exports=[],
        code=tmp_path,
        surroundings={"git_commit": "abc"},
    )


class Printed(list[str]):
    """Messages in the order in which they were printed."""

    def __call__(self, text: str) -> None:
        self.append(text)


def queue(study: Study, order: Order, printed: Printed | None = None) -> list[str]:
    states = study_state.collect(study)
    chosen = selection.select(states, study=study.name).chosen
    return waves.queue(study, order, chosen, states, Printed() if printed is None else printed)


def by_state(study: Study) -> dict[str, int]:
    states = [state.state for state in study_state.collect(study)]
    return {state: states.count(state) for state in sorted(set(states))}


def test_without_a_limit_all_is_queued_at_once(fake: FakeSlurm, study: Study, order: Order) -> None:
    assert queue(study, order) == ["1"]
    assert fake.jobs() == {1: 7, 2: 1}
    assert fake.dependency(2) == "afterany:1"
    assert not (study.folder / wave_order.RECORD).exists()


def test_a_limit_that_is_known_leaves_room_for_the_follow_up(
    fake: FakeSlurm, study: Study, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_limits, "find_room", lambda settings: site_limits.Room(5, "MaxSubmitJobs=5"))
    fake.set_limit(5)
    printed = Printed()
    assert queue(study, order, printed) == ["1", "2"]
    assert fake.jobs() == {1: 2, 2: 2, 3: 1}, "two arrays, so that the next wave need not wait for both"
    assert fake.dependency(3) == "afterany:1?afterany:2"
    assert printed[-1].startswith("3 runs wait for room in the queue (MaxSubmitJobs=5); job 3 queues them")
    assert by_state(study) == {"planned": 3, "queued": 4}
    lines = waves.describe(study, wave_order.read(study), study_state.collect(study), commands.queue())
    assert lines == ["3 runs wait for room in the queue: job 3 queues them"]


@pytest.mark.parametrize(
    ("mode", "done", "line"),
    [
        ("good", True, "queue: job 3 queues them"),  # nothing but waiting runs is left
        ("down", True, "whether a job queues them"),
        ("down", False, "whether a job queues them"),  # a silent controller is not asked again
    ],
)
def test_status_asks_slurm_once_about_waiting_runs(
    fake: FakeSlurm, study: Study, order: Order, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    mode: str, done: bool, line: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(site_limits, "find_room", lambda settings: site_limits.Room(5, "MaxSubmitJobs=5"))
    queue(study, order)
    for state in study_state.collect(study):
        if done and state.state == "queued":
            atomic_write(state.run.folder / run_files.SUMMARY, '{"iters": 20}')
    fake.end(1)
    fake.end(2)
    fake.set_mode(mode)
    before = fake.calls("squeue")
    status(str(study.folder), Path("out"), Console(width=200), watch=False, as_json=False, everything=False)
    assert line in capsys.readouterr().out
    assert fake.calls("squeue") == before + 1


def test_an_unknown_limit_is_found_by_halving_and_the_follow_up_goes_on(
    fake: FakeSlurm, study: Study, order: Order
) -> None:
    fake.set_limit(5)
    queue(study, order)
    assert fake.jobs() == {1: 3, 2: 1}
    assert by_state(study) == {"planned": 4, "queued": 3}
    for run in study.runs[:3]:
        atomic_write(run.folder / run_files.SUMMARY, '{"iters": 20}')
    fake.end(1)
    fake.end(2)  # the follow-up runs
    printed = Printed()
    assert waves.resume(study, Scheduler(), printed)
    assert fake.jobs() == {3: 4, 4: 1}
    assert by_state(study) == {"done": 3, "queued": 4}
    assert printed[-1] == "queued the report after them as job 4"
    assert not waves.resume(study, Scheduler(), printed), "done twice it does nothing"
    assert fake.jobs() == {3: 4, 4: 1}
    record = run_files.read_json(study.runs[5].folder / run_files.PROVENANCE) or {}
    assert record["git_commit"] == "abc", "the node may have no checkout: the submit's surroundings are recorded"


def test_half_of_the_runs_at_the_limit_leaves_room_for_the_follow_up(
    fake: FakeSlurm, study: Study, order: Order
) -> None:
    fake.set_limit(3)
    states = study_state.collect(study)
    waves.queue(study, order, states[:6], states, Printed())
    assert fake.jobs() == {1: 2, 2: 1}
    assert {s.reason for s in study_state.collect(study) if s.state == "planned"} <= {"waits for room in the queue", ""}


def test_a_limit_that_was_found_is_not_searched_for_again(fake: FakeSlurm, study: Study, order: Order) -> None:
    """Each try claims the runs; while the queue is full a --wait tries every minute."""
    fake.set_limit(1)
    (fake.home / "jobs" / "9").mkdir()
    (fake.home / "jobs" / "9" / "job").write_text("another\n\nscript")
    queue(study, order)
    before = [submit_attempts.newest(run.folder) for run in study.runs]
    waves.resume(study, Scheduler(), Printed())
    assert [submit_attempts.newest(run.folder) for run in study.runs[2:]] == before[2:]
    assert by_state(study) == {"planned": 7}


def test_the_next_submit_replaces_the_follow_up(fake: FakeSlurm, study: Study, order: Order) -> None:
    fake.set_limit(5)
    queue(study, order)
    (fake.home / "limit").unlink()
    queue(study, order)
    assert fake.jobs() == {1: 3, 3: 4, 4: 1}
    assert fake.dependency(4) == "afterany:1:3", "the report waits for the arrays of both submits"


def test_no_room_at_all_is_reported(fake: FakeSlurm, study: Study, order: Order) -> None:
    fake.set_limit(1)
    (fake.home / "jobs" / "9").mkdir()
    (fake.home / "jobs" / "9" / "job").write_text("another\n\nscript")
    printed = Printed()
    assert queue(study, order, printed) == []
    assert "QOSMaxSubmitJobPerUserLimit" in printed[-1]
    assert "rerun submit when jobs have ended" in printed[-1]
    assert by_state(study) == {"planned": 7}
    fake.end(9)
    fake.set_limit(-1)  # not even one
    with pytest.raises(RunError, match="though no job of yours is in the queue"):
        queue(study, order)
    assert by_state(study) == {"planned": 7}


def test_failed_runs_that_wait_are_not_forgotten(fake: FakeSlurm, study: Study, order: Order) -> None:
    """Chosen by --retry; the follow-up and a submit without --retry go on with them."""
    for run in study.runs[4:]:
        append_event(run.folder, "failed", reason="x")
    fake.set_limit(5)
    states = study_state.collect(study)
    waves.queue(study, order, selection.select(states, retry=True, study=study.name).chosen, states, Printed())
    states = study_state.collect(study)
    waiting = [state.run.id for state in wave_order.find_waiting(study, wave_order.read(study), states)]
    assert set(waiting) >= {run.id for run in study.runs[4:]}
    assert {state.run.id for state in selection.select(states, rerun=waiting).chosen} == set(waiting)
    assert wave_order.forget(study, waiting[:1]) == 1
    assert wave_order.is_waiting(study)
    assert wave_order.forget(study) == 3
    assert not wave_order.is_waiting(study)


def test_submits_at_the_same_time_leave_each_other_what_waits(fake: FakeSlurm, study: Study, order: Order) -> None:
    before = study_state.collect(study)
    fake.set_limit(5)
    waves.queue(study, order, before, before, Printed())
    printed = Printed()
    assert waves.queue(study, order, before[:3], before, printed) == []
    assert printed[0].startswith("3 runs are being queued by another submit (") and "process" in printed[0]
    assert fake.jobs() == {1: 3, 2: 1}
    assert wave_order.is_waiting(study), "the record and the follow-up are the other submit's"


def test_held_jobs_are_released_while_waiting(fake: FakeSlurm, study: Study, order: Order) -> None:
    queue(study, order)
    squeue, asked = fake.bin / "squeue", fake.home / "asked"
    squeue.write_text(squeue.read_text().replace('"Priority"', '"launch failed requeued held"'))
    (fake.bin / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scheduler, printed = Scheduler(), Printed()
    assert not waves.keep_going(study, printed)(study_state.collect(study, scheduler), scheduler)
    assert asked.read_text() == "release 1_0,1_1,1_2,1_3,1_4,1_5,1_6,2\n", "the runs and their report"
    assert printed[0].startswith("released 8 jobs that Slurm held")


def test_a_follow_up_that_slurm_holds_is_shown_and_released(fake: FakeSlurm, study: Study, order: Order) -> None:
    fake.set_limit(5)
    queue(study, order)
    squeue, asked = fake.bin / "squeue", fake.home / "asked"
    squeue.write_text(squeue.read_text().replace('"Priority"', '"launch failed requeued held"'))
    (fake.bin / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    follow_up_job = max(fake.jobs())
    lines = waves.describe(study, wave_order.read(study), study_state.collect(study), commands.queue())
    assert f"job {follow_up_job} should queue them, but is held (launch failed requeued held: submit again" in lines[0]
    queueing.release_held(study, None, Printed())
    assert asked.read_text().strip().split(",")[-1] == str(follow_up_job)


def test_a_node_that_cannot_submit_says_so(
    fake: FakeSlurm, study: Study, order: Order, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake.set_limit(5)
    queue(study, order)
    fake.end(2)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert follow_up.main([str(study.folder)]) == 1
    monkeypatch.setenv("PATH", path)
    [line] = waves.describe(study, wave_order.read(study), study_state.collect(study), commands.queue())
    assert line.startswith("4 runs wait") and "sbatch: not found on" in line and line.endswith("submit again")
    before = wave_order.read(study)
    assert before is not None and before.blocked


def test_max_parallel_holds_for_all_arrays_of_a_study(
    fake: FakeSlurm, study: Study, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_limits, "array_limits", lambda: site_limits.ArrayLimits(3))
    order = order.model_copy(update={"settings": SlurmSettings(max_parallel=2), "report": False})
    states = study_state.collect(study)
    waves.queue(study, order, states[:2], states, Printed())
    assert fake.dependency(1) == "", "both may run at once"
    states = study_state.collect(study)
    waves.queue(study, order, states[2:], states, Printed())
    assert fake.jobs() == {1: 2, 2: 3, 3: 2}
    assert fake.dependency(2) == "afterany:1"
    assert fake.dependency(3) == "afterany:1:2"


def test_wait_goes_on_where_no_follow_up_is_queued(fake: FakeSlurm, study: Study, order: Order) -> None:
    fake.set_limit(3)  # the follow-up finds no room
    printed = Printed()
    queue(study, order, printed)
    assert "no follow-up job (there is no room for it either): rerun submit" in printed[-1]
    for run in study.runs[:3]:
        atomic_write(run.folder / run_files.SUMMARY, '{"iters": 20}')
    fake.end(1)
    scheduler = Scheduler()

    def look() -> list[RunState]:
        return study_state.collect(study, scheduler)

    assert waves.keep_going(study, printed)(look(), scheduler)
    assert fake.jobs() == {2: 1, 3: 1}, "and a follow-up, now that there is room for one"
    assert by_state(study) == {"done": 3, "planned": 3, "queued": 1}


@pytest.mark.parametrize(
    ("words", "limit"),
    [
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit sbatch: error: Batch job submission failed: Job violates "
         "accounting/QOS policy (job submit limit, user's size and/or time limits)", True),
        ("sbatch: error: AssocGrpSubmitJobsLimit", True),
        ("sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's "
         "size and/or time limits)", True),
        ("sbatch: error: QOSMaxWallDurationPerJobLimit sbatch: error: Batch job submission failed: Job violates "
         "accounting/QOS policy (job submit limit, user's size and/or time limits)", False),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination", False),
    ],
)  # fmt: skip
def test_which_refusals_mean_that_too_much_is_queued(words: str, limit: bool) -> None:
    assert site_limits.is_limit(commands.ControllerError(words)) is limit


@pytest.mark.parametrize(
    ("association", "qos", "partition_qos", "room"),
    [
        ("||lab|normal|normal||", "", "", None),
        ("10||lab|normal|normal||", "", "", 7),
        ("|8|lab|normal|normal||", "", "", 5),
        ("||lab|normal|normal||", "6||", "", 4),  # two of the jobs are in this QOS
        ("||lab|normal|normal||", "6||4", "", 0),  # four, with another user's
        ("100||lab||normal||", "6||", "", 4),
        ("||lab|normal|normal||", "", "5||", 4),  # one of the jobs is in this partition
    ],
)
def test_the_narrowest_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, association: str, qos: str, partition_qos: str, room: int | None
) -> None:
    own = "lab|normal|cpu\nlab|normal|cpu\nlab|long|gpu\n"
    programs = {
        "sacctmgr": f"""case "$*" in *"assoc user="*) echo '{association}' ;; *"qos normal"*) echo '{qos}' ;;
            *"qos part"*) echo '{partition_qos}' ;; esac""",
        "squeue": f"""printf '{own}'; case "$*" in *--user=*) ;; *) printf 'x|normal|cpu\nx|normal|cpu\n' ;; esac""",
        "scontrol": """case "$*" in *partition*) echo "PartitionName=cpu QoS=N/A Default=NO"
            echo "PartitionName=gpu QoS=part Default=YES" ;; esac""",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert site_limits.find_room(SlurmSettings()).jobs == room


def test_no_accounting_is_no_limit(fake: FakeSlurm) -> None:
    assert site_limits.find_room(SlurmSettings()) == site_limits.Room()


def test_arrays_are_split_by_the_size_of_their_script(tmp_path: Path, study: Study) -> None:
    members = [(run, 1) for run in study.runs]
    settings = SlurmSettings()
    whole = queueing.SCRIPT_HEAD + 3 * (len(str(study.folder)) + 200)
    arrays = list(queueing.split(members, settings, 1000, whole))
    assert len(arrays) > 1
    assert [member for jobs in arrays for job in jobs for member in job] == members
    assert len(list(queueing.split(members, settings, 1000))) == 1


def test_limits_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = "MaxArraySize = 20001\nMaxJobCount = 5000\nSchedulerParameters = bf_interval=5,max_script_size=65536\n"
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\nprintf '{shown}'\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert site_limits.array_limits() == site_limits.ArrayLimits(4999, 65536)


def test_an_order_is_read_back_as_it_was_written(study: Study, order: Order) -> None:
    settings = SlurmSettings(gpus_per_node="a100:2", extra={"gres": "tmpfs:1"}, comment="p1", setup=["a", "b"])
    order = order.model_copy(update={"settings": settings, "runs": {"a": 1}})
    order.write(study)
    assert wave_order.read(study) == order
    assert (study.folder / wave_order.RECORD).stat().st_mode & 0o077 == 0
    (study.folder / wave_order.RECORD).write_text('{"launcher": 1}')
    assert wave_order.read(study) is None


def test_helper_jobs_have_a_script_of_their_own(study: Study, order: Order) -> None:
    batch = Batch(study, [], "", order.settings, order.code, [])
    assert (
        helper_jobs.script(batch, helper_jobs.FOLLOW_UP)
        .rstrip()
        .endswith(f"ablatrix.orchestrator.submit.follow_up {study.folder}")
    )
