"""Two trainers at one run: the newer one has it, the older one notices before it writes, and stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablatrix.trainer.config import from_flags
from ablatrix.trainer.rundir import loss_csv, run_files
from ablatrix.trainer.rundir.attempts import Attempt, SupersededError
from ablatrix.trainer.rundir.events import read_events
from ablatrix.trainer.rundir.files import append_line, atomic_write
from ablatrix.trainer.rundir.loss_csv import LossLog, parse_rows
from ablatrix.trainer.rundir.program import ROOT
from ablatrix.trainer.rundir.run_files import EXIT_SUPERSEDED
from tests.faults.actions import train
from tests.faults.conftest import Trainers, same_result, spread
from tests.faults.seccomp import Fault
from tests.support.evidence import Cases, Tally
from tests.support.waiting import PATIENCE, last_step, wait_for

HEADER = ",".join(loss_csv.COLUMNS) + "\n"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def events(run_dir: Path) -> list[str]:
    return [record["event"] for record in read_events(run_dir)]


def test_the_newest_attempt_owns_the_run(tmp_path: Path) -> None:
    first = Attempt.take(tmp_path / "run")
    assert first.number == 1 and first.still_mine()
    second = Attempt.take(tmp_path / "run")
    assert second.number == 2 and second.still_mine() and not first.still_mine()
    second.require()
    with pytest.raises(
        SupersededError, match=r"another trainer has taken over this run \(attempt 2, this is attempt 1\)"
    ):
        first.require()


def test_a_run_folder_that_was_removed_is_nobodys(tmp_path: Path) -> None:
    attempt = Attempt.take(tmp_path / "run")
    (tmp_path / "run" / ".attempts" / "1").rmdir()
    assert not attempt.still_mine()


def test_many_at_once_get_different_numbers(tmp_path: Path) -> None:
    taken: list[int] = []
    for _ in range(10):
        barrier = threading.Barrier(8)

        def take(barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            taken.append(Attempt.take(tmp_path).number)

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(taken) == list(range(1, 81))


@pytest.mark.parametrize("second_finishes", [True, False], ids=["second has finished", "second is at work"])
def test_paused_attempt_wakes_up_beside_its_successor(trainers: Trainers, second_finishes: bool) -> None:
    undisturbed = trainers.finish("undisturbed")
    run = trainers.folder / "run"
    first = trainers.start("run")
    wait_for(lambda: last_step(run) >= 10)
    first.send(signal.SIGSTOP)
    reached = last_step(run)
    argv, log = trainers.argv("run"), trainers.folder / "second.out"
    second = trainers.nursery.start(train, argv, log=log)
    if second_finishes:
        assert second.wait() == 0
    else:
        wait_for(lambda: last_step(run) > reached)
    before = files(run)
    first.send(signal.SIGCONT)
    assert first.wait() == EXIT_SUPERSEDED
    if second_finishes:
        after = files(run)
        assert {name for name in before if before[name] != after.get(name)} == {run_files.EVENTS}
        assert set(after) == set(before)
    assert second.wait() == 0
    assert same_result(run, undisturbed)
    assert "another trainer has taken over this run (attempt 2, this is attempt 1)" in first.log.read_text()
    record = next(r for r in read_events(run) if r["event"] == "superseded")
    assert record["start"] == 1
    begun = [(r["event"], r["start"]) for r in read_events(run) if r["event"] in ("started", "resumed")]
    assert begun == [("started", 1), ("resumed", 2)]
    assert "failed" not in events(run) and "stopped" not in events(run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_signal_to_a_superseded_attempt_says_nothing_about_the_run(trainers: Trainers, number: int) -> None:
    run = trainers.folder / "run"
    first = trainers.start("run")
    wait_for(lambda: last_step(run) >= 4)
    first.send(signal.SIGSTOP)
    assert trainers.nursery.start(train, trainers.argv("run"), log=first.log).wait() == 0
    first.send(number)
    first.send(signal.SIGCONT)
    assert first.wait() == EXIT_SUPERSEDED
    assert events(run)[-1] == "superseded" and not {"signal", "stopped", "failed"} & set(events(run))


@pytest.mark.parametrize("number", [signal.SIGCONT, signal.SIGKILL])
def test_job_of_a_superseded_attempt_leaves_the_state_alone(trainers: Trainers, number: int) -> None:
    """The node was given up, its job has finished elsewhere; then the old trainer notices that, or is killed."""
    run = trainers.folder / "run"
    config = from_flags(trainers.argv("run"))
    run.mkdir()
    atomic_write(run / run_files.CONFIG, config.resolved(4096).to_json())
    command = [sys.executable, "-m", "ablatrix.orchestrator.job.task", f"{run}:1"]
    environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen(command, env=environment, cwd=trainers.folder)
    wait_for(lambda: last_step(run) >= 4)
    trainer = next(r["pid"] for r in read_events(run) if r["event"] == "started")
    os.kill(trainer, signal.SIGSTOP)
    assert trainers.start("run").wait() == 0
    os.kill(trainer, number)
    assert job.wait(PATIENCE) == 0
    # stopped between a checkpoint and its event, the old trainer appends the event before it notices
    assert "failed" not in events(run) and "finished" in events(run)[-3:]
    assert {*events(run)[-2:]} <= {"checkpoint", "superseded", "finished"}


@pytest.mark.usefixtures("seccomp")
def test_overtaken_before_every_system_call(trainers: Trainers, cases: Cases, seed: int, tally: Tally) -> None:
    """However narrow the gap between looking and writing: another attempt begins and finishes in it."""
    small: dict[str, Any] = {"trainer__max_iters": 6, "trainer__ckpt_interval": 2}
    undisturbed = trainers.finish("undisturbed", **small)
    calls = trainers.watched("counted", Fault(changing=True), **small).calls
    codes = []
    for at in spread(len(calls), cases(12, len(calls)), seed):
        name = f"run{at}"
        codes.append(trainers.overtaken(name, at, **small).code)
        log = (trainers.folder / f"{name}.out").read_text()
        assert codes[-1] in (0, EXIT_SUPERSEDED), f"{at} {calls[at - 1]}: {log}"
        assert same_result(trainers.folder / name, undisturbed), f"{at} {calls[at - 1]}: {log}"
        assert not list((trainers.folder / name).glob(".*.tmp"))
    assert codes.count(EXIT_SUPERSEDED) > len(codes) / 2
    detail = f"before each of {len(calls)} system calls; 0 numbers differ, 0 temporary files left"
    tally("a trainer that is overtaken by a second attempt stops and spoils nothing", len(codes), detail)


class TestLossLog:
    """The writer of loss.csv beside somebody who should not be there any more."""

    @pytest.fixture
    def log(self, tmp_path: Path) -> LossLog:
        log = LossLog(tmp_path, 0)
        for step in (1, 2, 3):
            log.write({"iter": step, "loss": 1 / step})
        return log

    def row(self, step: int) -> str:
        return f"{step},{1 / step!r},,,,,,\n"

    @pytest.mark.parametrize("put_right", [LossLog.sync, LossLog.restore])
    def test_foreign_row_is_removed(self, log: LossLog, put_right: Callable[[LossLog], None]) -> None:
        append_line(log.path, self.row(2).strip())
        put_right(log)
        assert log.path.read_text() == HEADER + "".join(self.row(step) for step in (1, 2, 3))

    @pytest.mark.parametrize("put_right", [LossLog.sync, LossLog.restore])
    def test_lost_rows_come_back(self, log: LossLog, put_right: Callable[[LossLog], None]) -> None:
        atomic_write(log.path, HEADER + self.row(1))
        put_right(log)
        log.path.unlink()
        put_right(log)
        assert log.path.read_text() == HEADER + "".join(self.row(step) for step in (1, 2, 3))

    def test_row_written_to_the_file_before_its_successor_opened_it(self, tmp_path: Path) -> None:
        old = LossLog(tmp_path, 0)
        old.write({"iter": 1, "loss": 1.0})

        def successor_comes() -> None:
            new = LossLog(tmp_path, 1)
            new.write({"iter": 2, "loss": 0.5})

        old.guard = successor_comes
        old.write({"iter": 2, "loss": 0.5})
        assert (tmp_path / run_files.LOSS).read_text() == HEADER + self.row(1) + self.row(2)

    def test_guard_is_asked_before_anything_is_written(self, tmp_path: Path) -> None:
        log = LossLog(tmp_path, 0)
        text = log.path.read_text()

        def refuse() -> None:
            raise SupersededError("no longer mine")

        log.guard = refuse
        for write in (lambda: log.write({"iter": 1}), lambda: LossLog(tmp_path, 0, refuse), lambda: log._rewrite()):
            with pytest.raises(SupersededError):
                write()
        assert log.path.read_text() == text and [p.name for p in tmp_path.iterdir()] == [run_files.LOSS]


def test_readers_see_every_step_once_and_in_order() -> None:
    def text(*steps: int) -> str:
        return HEADER + "".join(f"{step},{number}.0,,,,,,\n" for number, step in enumerate(steps))

    def read(*steps: int) -> list[tuple[int, float]]:
        return [(int(row[0]), float(row[1])) for row in parse_rows(text(*steps))]

    assert read(1, 10, 20) == [(1, 0), (10, 1), (20, 2)]
    assert read(1, 10, 20, 10, 20, 30) == [(1, 0), (10, 1), (20, 2), (30, 5)]
    assert read(1, 20, 10, 20, 30) == [(1, 0), (10, 2), (20, 1), (30, 4)]
    assert parse_rows(text(1, 2)[:-1]) == parse_rows(text(1))
    assert parse_rows("") == parse_rows("iter,los") == parse_rows("a,b\n1,2\n") == []
