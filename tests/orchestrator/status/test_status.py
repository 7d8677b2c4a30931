"""The truth about a run from its files and the queue: every state, and every way to be gone."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablatrix.orchestrator.slurm import commands, job_parsing
from ablatrix.orchestrator.slurm.scheduler import Scheduler
from ablatrix.orchestrator.status import removed_files, run_state, study_state
from ablatrix.orchestrator.store import study_dir, submit_attempts
from ablatrix.orchestrator.store.study_dir import Study, StudyRun
from ablatrix.orchestrator.submit import selection
from ablatrix.orchestrator.verbs import cancel, logs
from ablatrix.trainer.rundir import loss_csv, run_files, timing
from ablatrix.trainer.rundir.errors import RunError
from ablatrix.trainer.rundir.events import STOP_FILE, append_event
from ablatrix.trainer.rundir.files import atomic_write
from tests.support.slurm_answers import TOKEN, Cluster, Queue, job, now, queue_run, write_rows


def test_planned_then_queued_then_running_then_done(study: Study, run: StudyRun, cluster: Cluster) -> None:
    assert now(study).state == "planned"
    queue_run(run)
    cluster.waiting = job("PENDING", reason="Priority")
    assert (now(study).state, now(study).reason, now(study).job_id) == ("queued", "Priority", "5_0")
    cluster.waiting = job("RUNNING", node="node7")
    append_event(run.folder, "started", iter=0)
    write_rows(run, 1, 10)
    state = now(study)
    assert (state.state, state.node, state.iter, state.loss) == ("running", "node7", 10, 2.5)
    assert state.tokens_per_s == pytest.approx(200)
    assert state.seconds_left == pytest.approx((1000 - 10) * 0.5)
    atomic_write(run.folder / run_files.SUMMARY, "{}x")
    assert now(study).state == "running", "a damaged summary says nothing"
    atomic_write(run.folder / run_files.SUMMARY, '{"iters": 10}')
    assert now(study).state == "done"


Events = list[tuple[str, dict[str, Any]]]
STARTED, FAILED = ("started", {"iter": 0}), ("failed", {"reason": "boom"})
STOPPED_BY_FILE = [STARTED, ("stopped", {"iter": 9, "by": STOP_FILE, "requeue": False})]
REQUEUED: Events = [(name, {"iter": 12}) for name in ("started", "signal", "stopped", "requeued")]
REFUSED = "scontrol requeue: disabled for this job"
UNEXPLAINED = "failed without giving a reason; see logs RUN"


@pytest.mark.parametrize(
    ("events", "in_queue", "state", "reason"),
    [
        *(([], job("PENDING", reason=word), "queued", "waiting for the scheduler") for word in ("None", "", "(null)")),
        ([STARTED], job("RUNNING"), "running", ""),
        ([STARTED, FAILED], {}, "failed", "boom"),
        ([FAILED], job("PENDING"), "failed", "boom"),  # the job was requeued for its other runs
        ([("failed", {"state": "failed"})], {}, "failed", UNEXPLAINED),
        ([("ended", {"state": "failed"})], {}, "failed", UNEXPLAINED),
        (REQUEUED, job("PENDING", reason="BeginTime"), "stopped", "requeued at step 0, waiting (BeginTime)"),
        (REQUEUED, job("RUNNING"), "running", ""),
        *(
            (STOPPED_BY_FILE, queue, "stopped", "stopped at step 0 by the file stop; submit again to continue")
            for queue in ({}, job("RUNNING"), job("PENDING"))
        ),
        (
            [STARTED, ("stopped", {"iter": 10}), ("stopped", {"reason": REFUSED})],
            {},
            "stopped",
            f"stopped at step 0; not requeued ({REFUSED}); submit again to continue",
        ),
    ],
)
def test_events_and_the_queue_decide(
    study: Study, run: StudyRun, cluster: Cluster, events: Events, in_queue: Queue, state: str, reason: str
) -> None:
    queue_run(run)
    cluster.waiting = in_queue
    for name, fields in events:
        append_event(run.folder, name, **fields)
    found = now(study)
    assert (found.state, found.reason) == (state, reason)
    assert found.active == (state in ("queued", "running") or "requeued at" in reason)


@pytest.mark.parametrize(
    ("waiting", "ended", "state"),
    [
        ({}, job("RUNNING"), "running"),  # requeued between squeue and scontrol
        ({}, job("PENDING"), "queued"),
        (job("RUNNING", token="f" * 16), {}, "lost"),  # the id was given to another job
    ],
)
def test_the_job_of_a_run_that_squeue_does_not_show(
    study: Study, run: StudyRun, cluster: Cluster, waiting: Queue, ended: Queue, state: str
) -> None:
    queue_run(run)
    cluster.waiting, cluster.ended = waiting, ended
    assert now(study).state == state


def test_a_job_may_start_before_its_id_is_recorded(study: Study, run: StudyRun, cluster: Cluster) -> None:
    submit_attempts.take(run.folder, 1)
    append_event(run.folder, "submitting", attempt=1, token=TOKEN)
    append_event(run.folder, "started", iter=0)
    append_event(run.folder, "queued", launcher="sbatch", job_id="5_0", attempt=1, token=TOKEN)
    cluster.waiting = job("RUNNING")
    assert now(study).state == "running"


@pytest.mark.parametrize(
    ("ended", "log", "state", "words"),
    [
        (job("CANCELLED"), "", "cancelled", "scancel"),
        (job("OUT_OF_MEMORY"), "iter 3\n", "lost", "out of memory: request more"),
        (job("TIMEOUT"), "iter 3\n", "lost", "time limit"),
        (job("NODE_FAIL"), "iter 3\n", "lost", "node failure"),
        (job("FAILED", exit_code="0:53"), None, "lost", "log: its folder is missing"),
        (job("FAILED", exit_code="0:9"), "iter 3\n", "lost", "probably out of memory"),
        (job("FAILED", exit_code="137:0"), "iter 3\n", "lost", "probably out of memory"),
        (job("FAILED", exit_code="1:0"), "torch.OutOfMemoryError: x\n", "lost", "out of memory"),
        (job("FAILED", exit_code="1:0"), "slurmstepd: *** DUE TO TIME LIMIT ***\n", "lost", "time limit"),
        (job("FAILED", exit_code="1:0"), "OSError: [Errno 122] Disk quota exceeded\n", "lost", "over quota"),
        (job("FAILED", exit_code="1:0"), "run `make warm-cache`\n", "lost", "offline cache"),
        (job("FAILED", exit_code="7:0"), "iter 3\n", "lost", "exit code 7:0"),
        (job("FAILED", exit_code="1:0"), None, "lost", "before the trainer started"),
        (job("COMPLETED", exit_code="0:0"), None, "lost", "before the trainer started"),
        ({}, "iter 3\n", "lost", "exited without reporting a reason"),
    ],
)
def test_gone_from_the_queue(
    study: Study, run: StudyRun, cluster: Cluster, ended: Queue, log: str | None, state: str, words: str
) -> None:
    queue_run(run)
    if log is not None:
        append_event(run.folder, "started", iter=0)
        (run.folder / run_files.JOB_OUT).write_text(log)
    cluster.ended = ended
    found = now(study)
    assert found.state == state
    assert words in found.reason
    cluster.ended = {}  # Slurm forgets after some minutes
    assert now(study).state == state
    assert words in now(study).reason or not ended


@pytest.mark.parametrize("place", ["5_0.out", "submitit/0123456789abcdef/5_0/5_0_0_log.out"])
@pytest.mark.parametrize(
    ("printed", "quoted"),
    [
        ("hello\nlicense server down\n", "license server down"),
        (
            "\x1b[31mslurmstepd: error: execve(): /x/python: No such file\x1b[0m\nsrun: error: n1: task 0: Exited\n",
            "slurmstepd: error: execve(): /x/python: No such file",
        ),
        (
            'Lmod has detected the following error: unknown module "cuda/99"\n\nPlease check the spelling\n',
            'Lmod has detected the following error: unknown module "cuda/99" ... Please check the spelling',
        ),
    ],
)
def test_a_job_that_ends_before_its_trainer_is_explained_by_its_own_log(
    study: Study, run: StudyRun, cluster: Cluster, place: str, printed: str, quoted: str
) -> None:
    (run.folder / run_files.JOB_OUT).write_text("an earlier attempt\n")
    queue_run(run)
    log = study.folder / study_dir.LOGS / place
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(printed)
    cluster.ended = job("FAILED", exit_code="1:0")
    state = now(study)
    assert state.state == "lost"
    assert state.reason == f'the job ended before the trainer started: "{quoted}" (logs/{place})'
    shown = logs.read_log(run, 50)
    assert str(log) in shown and shown.endswith(printed.splitlines()[-1])
    followed = "".join(logs.follow(run, lambda: True))
    assert followed.startswith("an earlier attempt\n") and followed.endswith(printed)


def test_a_task_that_failed_while_others_wait_was_not_cancelled(study: Study, run: StudyRun, cluster: Cluster) -> None:
    """Slurm forgets it after MinJobAge, while its array is still known; its log shows that it began."""
    queue_run(run)
    (study.folder / study_dir.LOGS / "5_0.out").write_text("module: command not found\n")
    cluster.ended = job(job_parsing.VANISHED)
    assert (now(study).state, "module: command not found" in now(study).reason) == ("lost", True)


def test_setup_lines_that_end_the_job_are_named(study: Study, run: StudyRun, cluster: Cluster) -> None:
    queue_run(run)
    shown = "no license\nslurm.setup ended the job before its run started (exit code 3)\n"
    (study.folder / study_dir.LOGS / "5_0.out").write_text(shown)
    cluster.ended = job("FAILED", exit_code="3:0")
    assert now(study).reason.endswith('"no license" (slurm.setup ended it with exit code 3; logs/5_0.out)')


@pytest.mark.parametrize(("evidence", "state"), [("", "cancelled"), ("started", "lost"), ("no log folder", "lost")])
def test_a_waiting_task_that_left_its_array_was_cancelled(
    study: Study, run: StudyRun, cluster: Cluster, evidence: str, state: str
) -> None:
    """Without a database Slurm keeps nothing of it, and forgets a task that ended early while others wait."""
    queue_run(run)
    if evidence == "started":
        assert submit_attempts.start(run.folder, 1, "5_0") is None
    elif evidence:
        (study.folder / study_dir.LOGS).rmdir()
    cluster.ended = job(job_parsing.VANISHED)
    assert now(study).state == state
    cluster.ended = {}
    assert now(study).state == state


def test_an_ended_attempt_does_not_speak_for_the_next(study: Study, run: StudyRun, cluster: Cluster) -> None:
    queue_run(run)
    cluster.ended = job("CANCELLED")
    assert now(study).state == "cancelled"
    queue_run(run)
    cluster.ended, cluster.waiting = {}, job("PENDING")
    assert now(study).state == "queued"
    assert now(study).attempt == 2


def test_without_squeue_a_queued_job_is_not_lost(study: Study, run: StudyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    queue_run(run)
    monkeypatch.setenv("PATH", "")
    scheduler = Scheduler()
    assert study_state.collect(study, scheduler)[0].state == "queued"
    assert "not found" in scheduler.problem


def test_a_claim_without_a_job_id_is_judged_by_its_own_events(study: Study, run: StudyRun, cluster: Cluster) -> None:
    submit_attempts.take(run.folder, 1)
    record = {"attempt": 1, "token": TOKEN}
    append_event(run.folder, "submitting", **record)
    for event in ("started", "failed"):
        append_event(run.folder, event, job_id="5_0", reason="boom")
    assert (now(study).state, now(study).reason, now(study).job_id) == ("failed", "boom", "5_0")


def test_a_silent_controller_keeps_the_last_known_truth(study: Study, run: StudyRun, cluster: Cluster) -> None:
    queue_run(run)
    cluster.down = True
    assert now(study).state == "queued"
    append_event(run.folder, "started", iter=0)
    assert now(study).state == "running"
    append_event(run.folder, "failed", reason="boom")
    assert now(study).state == "failed"
    scheduler = Scheduler()
    study_state.collect(study, scheduler)
    assert run_state.as_record([], scheduler.silent_since)["controller_silent_since"] == pytest.approx(
        time.time(), abs=60
    )


def test_torn_files_are_no_news(study: Study, run: StudyRun, cluster: Cluster) -> None:
    queue_run(run)
    cluster.waiting = job("RUNNING")
    write_rows(run, 1, 10)
    with (run.folder / run_files.LOSS).open("a") as file:
        file.write("20,1.2")
    with (run.folder / run_files.EVENTS).open("a") as file:
        file.write('{"event": "fail')
    state = now(study)
    assert (state.state, state.iter) == ("running", 10)


def test_follow_gives_all_that_is_written(run: StudyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_SECONDS", 0.0)
    path = run.folder / run_files.JOB_OUT
    steps: list[Callable[[], bool]] = [
        lambda: False,
        lambda: bool(path.write_text("one\n")) and False,
        lambda: bool(path.write_text("one\ntwo\n")) and False,
        lambda: bool(path.write_text("one\ntwo\nthree")) or True,
        lambda: True,
    ]
    assert "".join(logs.follow(run, lambda: steps.pop(0)())) == "one\ntwo\nthree"


def test_studies_are_found_by_folder_name_and_age(study: Study, tmp_path: Path) -> None:
    from ablatrix.trainer.rundir.errors import UserError

    assert study_dir.find_study(str(study.folder), tmp_path).folder == study.folder
    assert study_dir.find_study("s", tmp_path / "out").folder == study.folder
    assert study_dir.find_study(None, tmp_path / "out").folder == study.folder
    with pytest.raises(UserError, match=r"no study there; studies in .*: s"):
        study_dir.find_study("t", tmp_path / "out")
    (study.folder / "study.json").write_text('{"name": 1}')
    with pytest.raises(UserError, match="corrupt"):
        study_dir.load_study(study.folder)


def test_early_stop_is_done(study: Study, run: StudyRun, cluster: Cluster) -> None:
    queue_run(run)
    summary = {"iters": 40, "max_iters": 100, "stopped_early": True, "diverged": False}
    (run.folder / run_files.SUMMARY).write_text(json.dumps(summary))
    assert (now(study).state, now(study).reason) == ("done", "stopped early at step 40: no better evaluation")


def test_the_token_decides_which_job_is_the_runs(study: Study, run: StudyRun, cluster: Cluster) -> None:
    queue_run(run, "2026_0")
    cluster.waiting = job("RUNNING") | {"2026_0": job_parsing.Job("2026_0", "PENDING", comment="another array of mine")}
    state = now(study)
    assert (state.state, state.job_id, state.confirmed) == ("running", "5_0", True)


def test_a_job_is_cancelled_only_where_it_is_known_to_be_the_runs(
    study: Study, run: StudyRun, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[str] = []
    monkeypatch.setattr(commands, "cancel", cancelled.extend)
    queue_run(run)
    cluster.waiting = {"5_0": job_parsing.Job("5_0", "PENDING", comment="set by the site")}
    with pytest.raises(RunError, match="run: scancel 5_0"):
        cancel.cancel_runs([now(study)])
    append_event(run.folder, "started", iter=0, job_id="5_0")
    cluster.waiting = {"5_0": job_parsing.Job("5_0", "RUNNING", comment="set by the site")}
    cancel.cancel_runs([now(study)])
    assert cancelled == ["5_0"]
    cluster.waiting, cluster.ended = {}, job("CANCELLED")
    assert (now(study).state, now(study).reason) == ("cancelled", "cancelled (ablatrix cancel)")


def test_a_waiting_run_that_is_cancelled_stays_so(
    study: Study, run: StudyRun, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job never writes anything, and without accounting Slurm forgets it within minutes."""
    monkeypatch.setattr(commands, "cancel", lambda jobs: cluster.waiting.clear())
    queue_run(run)
    cluster.waiting = job("PENDING")
    assert cancel.cancel_runs([now(study)]) == [run.id]
    assert now(study).state == "cancelled"


def test_a_loss_csv_that_was_cut_after_the_run(study: Study, run: StudyRun) -> None:
    log = loss_csv.LossLog(run.folder, 0)
    for step in (1, 2, 3):
        log.write({"iter": step, "loss": 3.5})
    summary = {"iters": 3, "max_iters": 3, **timing.describe(run.folder, "cpu")}
    (run.folder / run_files.SUMMARY).write_text(json.dumps(summary))
    assert (now(study).state, now(study).altered) == ("done", "")
    path = run.folder / run_files.LOSS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    state = now(study)
    assert state.state == "done"
    said = "loss.csv has been changed since: 2 of 3 rows, it ends at step 2 of 3 (submit --retry runs it again)"
    assert said in state.reason and said in removed_files.list_all(study, [state])[0]
    assert selection.select([state], retry=True).chosen == [state]
    assert selection.select([state]).done == [state]
