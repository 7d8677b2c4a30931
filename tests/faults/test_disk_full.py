"""A disk that fills up or goes away under a run: a clear end, the last good checkpoint intact, and then it goes on."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ablatrix.trainer import checkpoint
from ablatrix.trainer.rundir import files, run_files
from ablatrix.trainer.rundir.events import read_events
from ablatrix.trainer.rundir.program import ROOT
from tests.faults.actions import train
from tests.faults.conftest import Trainers, same_result, spread
from tests.faults.seccomp import Fault
from tests.support.evidence import Cases, Tally

pytestmark = pytest.mark.slow

ENV = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}


def one_line(text: str) -> str:
    """The error that was shown; fails where it is not exactly one line without a traceback."""
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in text, text
    return errors[0]


def check_checkpoints(run_dir: Path) -> None:
    """Every checkpoint can be loaded, and no temporary file is left."""
    for path in checkpoint.checkpoints(run_dir):
        checkpoint._read(path)
    assert not list(run_dir.glob(".*.tmp"))


@pytest.mark.usefixtures("seccomp")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=lambda n: errno.errorcode[n])
def test_full_from_some_write_on(trainers: Trainers, number: int, cases: Cases, seed: int, tally: Tally) -> None:
    undisturbed = trainers.finish("undisturbed", trainer__max_iters=8)
    calls = trainers.watched("counted", Fault(changing=True), trainer__max_iters=8).calls
    writes = [at for at, name in enumerate(calls, 1) if name == "write"]
    del writes[-1]  # the event after summary.json: the run is done
    chosen = [writes[i - 1] for i in spread(len(writes), cases(6, len(writes)), seed)]
    for at in chosen:
        name = f"run{at}"
        run = trainers.folder / name
        outcome = trainers.watched(name, Fault("same", at, number, changing=True), trainer__max_iters=8)
        said = (trainers.folder / f"{name}.out").read_text()
        assert outcome.code == 1, said
        assert f"({os.strerror(number)}): disk full or over quota; free some space" in one_line(said)
        check_checkpoints(run)
        found = checkpoint.checkpoints(run)
        assert (f"it continues from {found[0].name}" if found else "there is no checkpoint yet") in said
        trainers.finish(name, trainer__max_iters=8)
        assert same_result(run, undisturbed)
    promise = f"{errno.errorcode[number]} at a write of the trainer: one line, exit code 1, and then it goes on"
    tally(promise, len(chosen), f"of {len(writes)} writes; 0 damaged checkpoints, 0 results that differ")


@pytest.mark.usefixtures("seccomp")
def test_failure_is_recorded_once_there_is_space_for_a_line(trainers: Trainers) -> None:
    calls = trainers.watched("counted", Fault(changing=True), trainer__max_iters=8).calls
    second = [at for at, name in enumerate(calls, 1) if name == "rename"][-3]  # a checkpoint's
    run = trainers.folder / "run"
    outcome = trainers.watched("run", Fault("once", second, errno.ENOSPC, changing=True), trainer__max_iters=8)
    assert outcome.code == 1
    last = read_events(run)[-1]
    assert last["event"] == "failed" and "disk full or over quota" in last["reason"]


@pytest.mark.usefixtures("seccomp")
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE], ids=lambda n: errno.errorcode[n])
def test_what_passes_is_waited_for(trainers: Trainers, number: int, cases: Cases, seed: int, tally: Tally) -> None:
    """Each call that changes a file fails once: the run does not even stop."""
    undisturbed = trainers.finish("undisturbed", trainer__max_iters=8)
    calls = trainers.watched("counted", Fault(changing=True), trainer__max_iters=8).calls
    chosen = spread(len(calls), cases(8, len(calls)), seed)
    for at in chosen:
        name = f"run{at}"
        outcome = trainers.watched(name, Fault("once", at, number, changing=True), trainer__max_iters=8)
        said = (trainers.folder / f"{name}.out").read_text()
        assert outcome.failed == [calls[at - 1]]
        assert outcome.code == 0, f"{at} {calls[at - 1]}: {said}"
        assert same_result(trainers.folder / name, undisturbed)
        check_checkpoints(trainers.folder / name)
    promise = f"{errno.errorcode[number]} once at a system call of the trainer: it is waited for, the run ends done"
    tally(promise, len(chosen), f"of {len(calls)} calls; 0 results that differ")


@pytest.mark.usefixtures("seccomp")
def test_what_does_not_pass_ends_the_run(trainers: Trainers) -> None:
    undisturbed = trainers.finish("undisturbed", trainer__max_iters=8)
    calls = trainers.watched("counted", Fault(changing=True), trainer__max_iters=8).calls
    at = [at for at, name in enumerate(calls, 1) if name == "fsync"][-8]
    outcome = trainers.watched("run", Fault("all", at, errno.EIO, changing=True), trainer__max_iters=8)
    said = (trainers.folder / "run.out").read_text()
    assert outcome.code == 1
    assert "the file system kept failing (Input/output error)" in one_line(said)
    trainers.finish("run", trainer__max_iters=8)
    assert same_result(trainers.folder / "run", undisturbed)


@pytest.mark.usefixtures("seccomp")
def test_finished_run_is_done_though_nothing_more_can_be_written(trainers: Trainers) -> None:
    calls = trainers.watched("counted", Fault(changing=True), trainer__max_iters=8).calls
    last = max(at for at, name in enumerate(calls, 1) if name == "write")
    outcome = trainers.watched("run", Fault("same", last, errno.ENOSPC, changing=True), trainer__max_iters=8)
    assert outcome.code == 0 and outcome.failed
    assert same_result(trainers.folder / "run", trainers.folder / "counted")


def test_waits_grow_to_less_than_a_minute() -> None:
    assert list(files.PAUSES) == sorted(files.PAUSES) and 10 < sum(files.PAUSES) < 60


def test_a_real_file_system_that_is_full(trainers: Trainers, tmp_path: Path) -> None:
    """A tmpfs of a few checkpoints' size, in a mount namespace of its own."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs unshare(1) and user namespaces")
    undisturbed = trainers.finish("undisturbed")
    size = sum(path.stat().st_size for path in checkpoint.checkpoints(undisturbed))
    disk = tmp_path / "disk"
    disk.mkdir()
    command = shlex.join([sys.executable, "-m", "trainer", *trainers.argv("disk/run")])
    script = (
        f"mount -t tmpfs -o size={size * 5 // 4} none {disk} && cd {ROOT} && {command} > {tmp_path}/out 2>&1; code=$?; "
        f"cp -a {disk}/run {tmp_path}/kept && exit $code"
    )
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=ENV, check=False, capture_output=True, text=True)
    said = (tmp_path / "out").read_text() + done.stderr
    assert done.returncode == 1, said
    assert "No space left on device): disk full or over quota" in one_line(said)
    kept = tmp_path / "kept"
    check_checkpoints(kept)
    assert len(checkpoint.checkpoints(kept)) == 2
    assert "disk full or over quota" in read_events(kept)[-1]["reason"]
    shutil.move(kept, tmp_path / "again")
    trainers.finish("again")  # a disk with space
    assert same_result(tmp_path / "again", undisturbed)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_that_cannot_be_written_ends_nothing(trainers: Trainers) -> None:
    child = trainers.nursery.start(train, trainers.argv("run", trainer__max_iters=8), log=Path("/dev/full"))
    assert child.wait() == 0
    assert (trainers.folder / "run" / run_files.SUMMARY).exists()
