"""Each run is queued exactly once: several submits at once, and an sbatch that answers late, twice or never."""

import multiprocessing
import os
import re
import resource
from collections import Counter
from pathlib import Path

import pytest

from ablatrix.orchestrator.slurm import job_identity, launchers
from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import study_state
from ablatrix.orchestrator.store import study_dir, submit_attempts
from ablatrix.orchestrator.store.study_dir import Study
from ablatrix.orchestrator.study import matrix
from ablatrix.orchestrator.study.run_order import in_queue_order
from ablatrix.orchestrator.study.slurm_settings import SlurmSettings
from ablatrix.orchestrator.submit import queueing, selection
from ablatrix.trainer.rundir import run_files
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.events import read_events
from ablatrix.trainer.rundir.files import atomic_write
from tests.support.evidence import Cases
from tests.support.fake_slurm import FakeSlurm
from tests.support.plans import FIVE, expand
from tests.support.waiting import PATIENCE
from tests.support.workspace import Workspace


@pytest.fixture
def fake(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A Slurm that answers, on a busy machine after a while."""
    monkeypatch.setattr("ablatrix.orchestrator.slurm.sbatch.SBATCH_TIMEOUT", 60.0)
    monkeypatch.setattr(job_identity, "LOOKS", (0.0, 0.3))
    return fake


def make_study(folder: Path, runs: list[matrix.Run] | None = None) -> Study:
    runs = runs or in_queue_order(expand(folder, FIVE), "s", lambda run: run)
    return study_dir.create_study(folder / "out" / "s", "s", folder / "e.yaml", {}, runs)


def submit_once(study: Study) -> str:
    """What `submit` does between planning and printing."""
    states = study_state.collect(study)
    queueing.adopt(states)
    members = queueing.claim(selection.select(states, study=study.name).chosen, print)
    try:
        for jobs in queueing.split(members, SlurmSettings(), 1001):
            queueing.queue(
                launchers.make("sbatch"),
                queueing.prepare(study, jobs, SlurmSettings(), queueing.take_snapshot(study)),
            )
    except RunError as error:
        return str(error)
    return ""


def queued_runs(study: Study, fake: FakeSlurm) -> Counter[str]:
    """How many waiting array tasks would run each run, by the scripts that were submitted."""
    counts: Counter[str] = Counter()
    for path in (fake.home / "jobs").glob("*/job"):
        script = Path(path.read_text().split("\n")[2]).read_text()
        counts.update(run.id for run in study.runs if f"/{run.id}:" in script)
    return counts


@pytest.mark.parametrize(
    "mode", ["good", "late", "twice", pytest.param("never", marks=pytest.mark.slow), "banner", "overwritten"]
)
def test_one_submit_one_job_whatever_the_answer(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    fake.set_mode(mode)
    if mode == "never":  # time enough on a busy machine to queue the job
        monkeypatch.setattr("ablatrix.orchestrator.slurm.sbatch.SBATCH_TIMEOUT", 5.0)
    study = make_study(tmp_path)
    assert submit_once(study) == ""
    assert set(queued_runs(study, fake).values()) == {1}
    states = study_state.collect(study)
    assert {state.state for state in states} == {"queued"}
    assert {state.job_id.partition("_")[0] for state in states} == {str(number) for number in fake.jobs()}


def test_no_number_is_believed_where_the_queue_shows_no_mark(fake: FakeSlurm, tmp_path: Path) -> None:
    fake.set_mode("unmarked")
    study = make_study(tmp_path)
    assert "several numbers (1, 2026, 1017)" in submit_once(study)
    assert len(fake.jobs()) == 1
    assert fake.calls("scancel") == 0
    assert {state.state for state in study_state.collect(study)} == {"queued"}


def test_a_refusal_frees_the_runs_at_once(fake: FakeSlurm, tmp_path: Path) -> None:
    fake.set_mode("refuse")
    study = make_study(tmp_path)
    assert "Invalid account" in submit_once(study)
    assert {state.state for state in study_state.collect(study)} == {"planned"}
    fake.set_mode("good")
    assert submit_once(study) == ""
    assert set(queued_runs(study, fake).values()) == {1}


def test_a_queue_that_falls_silent_after_sbatch_loses_nothing(fake: FakeSlurm, tmp_path: Path) -> None:
    """The job is in the queue; only the look for twins behind it fails."""
    study = make_study(tmp_path)
    squeue = (fake.bin / "squeue").read_text()
    (fake.bin / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: standby mode' >&2\nexit 1\n")
    assert submit_once(study) == ""
    (fake.bin / "squeue").write_text(squeue)
    submit_once(study)
    assert set(queued_runs(study, fake).values()) == {1}


def test_a_disk_that_fills_up_before_sbatch_frees_the_runs(fake: FakeSlurm, tmp_path: Path) -> None:
    study = make_study(tmp_path)
    (study.folder / study_dir.LOGS).rename(tmp_path / "logs")  # nothing can be written there now
    assert "none of it was queued" in submit_once(study)
    assert {state.state for state in study_state.collect(study)} == {"planned"}
    (tmp_path / "logs").rename(study.folder / study_dir.LOGS)
    assert submit_once(study) == ""
    assert set(queued_runs(study, fake).values()) == {1}


def test_a_disk_that_fills_up_behind_sbatch_doubles_nothing(fake: FakeSlurm, tmp_path: Path) -> None:
    """The jobs are queued, and their ids cannot be written down."""
    study = make_study(tmp_path)
    events = study.runs[2].folder / run_files.EVENTS
    program = fake.bin / "sbatch"
    spoil = f"import os\nos.rename({str(events)!r}, {str(events) + '.kept'!r})\nos.mkdir({str(events)!r})\n"
    text = program.read_text()
    program.write_text(text.replace("\n", "\n" + spoil, 1))
    assert "queued as job 1" in submit_once(study)
    program.write_text(text)
    events.rmdir()
    events.with_name(events.name + ".kept").rename(events)
    assert [state.job_id for state in study_state.collect(study)] == [f"1_{index}" for index in range(7)]
    assert submit_once(study) == ""
    assert set(queued_runs(study, fake).values()) == {1}
    assert read_events(study.runs[6].folder)[-1]["event"] == "queued"


def test_claims_that_cannot_be_described_are_one_sentence(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    members = queueing.claim(selection.select(study_state.collect(study), study=study.name).chosen, print)
    (study.runs[3].folder / run_files.PROVENANCE).mkdir()
    code = queueing.take_snapshot(study)
    with pytest.raises(RunError, match="nothing was queued"), queueing.released_on_error(members):
        queueing.prepare(study, [[member] for member in members], SlurmSettings(), code)
    assert {state.state for state in study_state.collect(study)} == {"planned"}


def test_an_unknown_fate_blocks_until_it_is_known(
    fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.set_mode("lost")
    study = make_study(tmp_path)
    assert "only the others are queued" in submit_once(study)
    assert {state.state for state in study_state.collect(study)} == {"queued"}
    fake.set_mode("good")
    submit_once(study)
    assert not fake.jobs(), "queued again before the first try was known to be void"
    monkeypatch.setattr(submit_attempts, "VOID_AFTER", 0.0)
    assert {state.state for state in study_state.collect(study)} == {"planned"}
    submit_once(study)
    assert set(queued_runs(study, fake).values()) == {1}


def test_a_job_whose_answer_was_lost_is_found_later(fake: FakeSlurm, tmp_path: Path) -> None:
    """The submit died between sbatch and its note of the job id."""
    study = make_study(tmp_path)
    members = queueing.claim(selection.select(study_state.collect(study), study=study.name).chosen, print)
    batch = queueing.prepare(study, [[member] for member in members], SlurmSettings(), queueing.take_snapshot(study))
    launchers.make("sbatch").launch(batch)
    states = study_state.collect(study)
    assert [state.job_id for state in states] == [f"1_{index}" for index in range(7)]
    submit_once(study)
    assert len(fake.jobs()) == 1
    events = read_events(study.runs[3].folder)
    assert events[-1]["event"] == "queued"
    assert events[-1]["job_id"] == "1_3"


def _submit_in_a_process(study: Study, start: "multiprocessing.synchronize.Barrier") -> None:
    start.wait()
    submit_once(study)


@pytest.mark.slow
def test_eight_submits_at_once(fake: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cases: Cases) -> None:
    monkeypatch.setattr("ablatrix.orchestrator.slurm.sbatch.SBATCH_TIMEOUT", 0.5)
    rounds = cases(5, 50)
    fake.set_mode("chaos")
    context = multiprocessing.get_context("fork")
    planned = expand(tmp_path, FIVE)
    for number in range(rounds):
        study = make_study(tmp_path / str(number), planned)
        barrier = context.Barrier(8)
        submits = [context.Process(target=_submit_in_a_process, args=(study, barrier)) for _ in range(8)]
        for process in submits:
            process.start()
        for process in submits:
            process.join(timeout=PATIENCE)
            assert process.exitcode == 0
        fake.set_mode("good")  # where an answer stayed unknown: the user submits again, later
        with monkeypatch.context() as later:
            later.setattr(submit_attempts, "VOID_AFTER", 0.0)
            later.setattr("ablatrix.orchestrator.slurm.sbatch.SBATCH_TIMEOUT", PATIENCE)
            submit_once(study)
        fake.set_mode("chaos")
        counts = queued_runs(study, fake)
        assert counts == Counter({run.id: 1 for run in study.runs}), f"round {number}: {counts}"
        for path in (fake.home / "jobs").glob("*/job"):
            path.unlink()


def test_status_asks_squeue_once_for_a_hundred_runs(fake: FakeSlurm, tmp_path: Path) -> None:
    study = make_study(tmp_path, expand(tmp_path, FIVE + "seeds: 15\n"))
    assert len(study.runs) == 105
    submit_once(study)
    before = fake.calls("squeue"), fake.calls("scontrol"), fake.calls("sacct")
    states = study_state.collect(study)
    assert {state.state for state in states} == {"queued"}
    assert (fake.calls("squeue"), fake.calls("scontrol"), fake.calls("sacct")) == (before[0] + 1, *before[1:])


def test_jobs_of_an_array_over_the_limit_are_split(fake: FakeSlurm, tmp_path: Path) -> None:
    study = make_study(tmp_path)
    members = queueing.claim(selection.select(study_state.collect(study), study=study.name).chosen, print)
    assert [[len(job) for job in jobs] for jobs in queueing.split(members, SlurmSettings(runs_per_job=2), 3)] == [
        [2, 2, 2],
        [1],
    ]


def test_a_silent_controller_is_named_and_left_in_peace(fake: FakeSlurm, tmp_path: Path) -> None:
    study = make_study(tmp_path)
    submit_once(study)
    fake.set_mode("down")
    scheduler = Scheduler()
    before = fake.calls("squeue")
    for _ in range(5):
        states = study_state.collect(study, scheduler)
    assert {state.state for state in states} == {"queued"}, "the last known truth"
    assert scheduler.silent_since is not None
    assert "Unable to contact" in scheduler.problem
    assert fake.calls("squeue") == before + 1, "a controller that is down was asked again at once"


@pytest.mark.parametrize("permitted", [True, False])
def test_jobs_that_slurm_holds_after_a_failed_start_are_released(
    fake: FakeSlurm, tmp_path: Path, permitted: bool
) -> None:
    """They would wait for ever, and count as queued."""
    study = make_study(tmp_path)
    submit_once(study)
    squeue, asked = fake.bin / "squeue", tmp_path / "asked"
    squeue.write_text(squeue.read_text().replace('"Priority"', '"launch failed requeued held"'))
    (fake.bin / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n{"" if permitted else "exit 1"}\n')
    states = study_state.collect(study)
    assert {state.state for state in states} == {"queued"}
    assert "submit again to release it" in states[0].reason
    atomic_write(study.runs[0].folder / run_files.SUMMARY, '{"iters": 20}')  # done, then its job was requeued
    assert submit_attempts.take(study.runs[1].folder, 2)  # queued again
    printed: list[str] = []
    queueing.release_held(study, None, printed.append)
    [shown] = printed
    assert asked.read_text() == "release 1_0,1_1,1_2,1_3,1_4,1_5,1_6\n"
    assert "7 jobs" in shown and ("released" if permitted else "submit with --retry") in shown


def test_jobs_that_their_user_holds_stay_held(fake: FakeSlurm, tmp_path: Path) -> None:
    study = make_study(tmp_path)
    submit_once(study)
    squeue = fake.bin / "squeue"
    squeue.write_text(squeue.read_text().replace('"Priority"', '"JobHeldUser"'))
    states = study_state.collect(study)
    assert "JobHeldUser: release it by scontrol release" in states[0].reason
    squeue.write_text(squeue.read_text().replace('"JobHeldUser"', '"launch failed requeued held"'))
    printed: list[str] = []
    queueing.release_held(make_study(tmp_path / "another", expand(tmp_path, FIVE)), None, printed.append)
    squeue.write_text(squeue.read_text().replace('"launch failed requeued held"', '"JobHeldUser"'))
    queueing.release_held(study, None, printed.append)
    assert not printed


def test_only_one_job_runs_an_attempt(tmp_path: Path) -> None:
    assert submit_attempts.take(tmp_path, 1)
    assert not submit_attempts.take(tmp_path, 1)
    assert submit_attempts.start(tmp_path, 1, "10_0") is None
    assert submit_attempts.start(tmp_path, 1, "10_0") is None, "a requeued job goes on"
    assert "job 10_0 runs attempt 1" in str(submit_attempts.start(tmp_path, 1, "11_0"))
    assert submit_attempts.take(tmp_path, 2)
    assert "attempt 2 has taken its place" in str(submit_attempts.start(tmp_path, 1, "10_0"))


def test_a_full_disk_leaves_no_half_of_a_started_attempt(tmp_path: Path) -> None:
    assert submit_attempts.take(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            submit_attempts.start(tmp_path, 1, "10_0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / submit_attempts.FOLDER / "1").iterdir())
    assert submit_attempts.start(tmp_path, 1, "11_0") is None


def test_the_plan_shows_as_many_scripts_as_the_cluster_needs(fake: FakeSlurm, workspace: Workspace) -> None:
    workspace.environment = {"PATH": os.environ["PATH"]}
    words = ("plan", workspace.write_study(), "--sbatch", "--launcher", "sbatch", "--set", "seeds=150")
    scripts = workspace.run(*words).stdout
    assert re.findall("#SBATCH --array=(.*)", scripts) == ["0-1000", "0-48"]  # the stub's MaxArraySize is 1001


def test_a_dead_controller_is_no_fault_of_the_file(fake: FakeSlurm, workspace: Workspace) -> None:
    workspace.environment = {"PATH": os.environ["PATH"]}
    study = workspace.write_study()
    fake.set_mode("down")
    shown = workspace.run("submit", study, "--launcher", "sbatch", code=1).stderr
    assert shown.startswith("error: Slurm does not answer (") and "Unable to contact" in shown
    assert str(study) not in shown and "--launcher local" in shown
    assert len(shown.splitlines()) == 1
    shown = workspace.run(
        "check", study, "--launcher", "sbatch", "--set", "export=[NOT_SET_HERE]", "--set", "features={}", code=2
    ).stderr
    fault, silence = shown.splitlines()
    assert "NOT_SET_HERE is not set" in fault and "Slurm does not answer" in silence
