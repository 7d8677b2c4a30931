"""Folders that are read-only, or go away in the middle: a sentence, nothing half-made, and then it goes on.

Real mounts, in a mount namespace of their own.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest

from ablatrix.trainer.rundir.events import read_events
from tests.support import finished_runs
from tests.support.evidence import Cases, Tally
from tests.support.waiting import PATIENCE
from tests.support.workspace import Workspace

pytestmark = pytest.mark.slow
ABLATRIX = f"{shlex.quote(sys.executable)} -m orchestrator"
SUBMIT = f"{ABLATRIX} submit study.yaml --launcher local"


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs unshare(1) and user namespaces")


@dataclass(frozen=True)
class Step:
    """What a command of the script has said."""

    code: int
    out: str
    err: str

    def sentence(self) -> str:
        """Its error; fails where it is not one line."""
        assert "Traceback" not in self.out + self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line


def script(workspace: Workspace, *commands: str) -> list[Step]:
    """Run shell commands one after the other, with the right to mount; those that begin with `:` must not fail."""
    place = workspace.folder / "steps"
    place.mkdir(exist_ok=True)
    lines = [
        f"{{ {command.removeprefix(':')}\n}} >{place}/{i}.out 2>{place}/{i}.err; echo $? >{place}/{i}.code"
        for i, command in enumerate(commands)
    ]
    words = ["unshare", "-rm", "bash", "-c", "\n".join(lines)]
    subprocess.run(words, cwd=workspace.folder, env=workspace.env(), check=True, timeout=PATIENCE)
    read = [[(place / f"{i}.{kind}").read_text() for kind in ("code", "out", "err")] for i in range(len(commands))]
    steps = [Step(int(code), out, err) for code, out, err in read]
    for command, step in zip(commands, steps, strict=True):
        assert step.code == 0 or not command.startswith(":"), (command, step)
    return steps


READ_ONLY = {
    "status study": (0, ""),
    "cancel --all -y --study study": (0, ""),
    "submit study.yaml --launcher local": (2, "cannot write to out/study/study.json: Read-only file system"),
    "submit study.yaml --launcher local --rerun baseline": (2, "is not writable; choose another `output:`"),
    "plan study.yaml": (0, ""),
    "plan study.yaml --launcher sbatch --sbatch": (0, ""),
    "logs baseline --study study": (0, ""),
    "show baseline --study study": (0, ""),
    "check study.yaml": (2, "is not writable; choose another `output:`"),
}


def test_read_only(work: Workspace, cases: Cases, tally: Tally) -> None:
    """A finished study can be looked at; what would write says so."""
    before = {path: path.read_bytes() for path in (work.folder / "out").rglob("*") if path.is_file()}
    verbs = list(READ_ONLY)[: cases(4, len(READ_ONLY))]
    mount = ":mount --bind out out && mount -o remount,ro,bind out"
    _, *steps = script(work, mount, *(f"{ABLATRIX} {verb}" for verb in verbs))
    for verb, step in zip(verbs, steps, strict=True):
        code, said = READ_ONLY[verb]
        assert step.code == code, (verb, step)
        assert said in step.sentence() if said else "Traceback" not in step.err, (verb, step)
    assert {path: path.read_bytes() for path in (work.folder / "out").rglob("*") if path.is_file()} == before
    tally("verbs on a read-only study say what they cannot write, or work", len(verbs), "0 tracebacks, 0 files changed")


def test_a_report_that_cannot_be_written(work: Workspace) -> None:
    (work.folder / "out/study/report/summary.csv").unlink()
    mount = ":mount --bind out out && mount -o remount,ro,bind out"
    _, step = script(work, mount, f"{ABLATRIX} report study")
    assert step.code == 1 and "cannot write the report to out/study/report" in step.sentence(), step
    assert "report/summary.csv (report writes it again)" in step.out


def test_gone_in_the_middle(work: Workspace, cases: Cases, tally: Tally) -> None:
    """`umount -l` under two runs at work: they stop, nothing is made in its place, and mounted again it goes on."""
    if not cases(0, 1):
        pytest.skip("with --full")
    original = {cell: finished_runs.results(work, cell) for cell in ("baseline", "swiglu")}
    again = dataclasses.replace(work, folder=work.folder.parent / "again")
    for name in ("out", "disk"):
        (again.folder / name).mkdir(parents=True)
    shutil.copy(work.folder / "study.yaml", again.folder)
    mount = ":mount --bind disk out"
    vanish = f"{SUBMIT} & until cat out/study/*/loss.csv | grep -q ^1,; do sleep 0.01; done; umount -l out; wait $!"
    _, gone, left, looked, _, went_on = script(
        again, mount, vanish, ":find out -mindepth 1", f"{ABLATRIX} status study", mount, f"{SUBMIT} --retry"
    )
    assert gone.code == 1 and "out/study/study.json no longer exists" in gone.sentence(), gone
    assert left.out == "", "something was made where the folder had been"
    assert looked.code == 2 and "no study there" in looked.sentence()
    assert went_on.code == 0, went_on
    (again.folder / "out").rmdir()
    (again.folder / "disk").rename(again.folder / "out")
    assert {cell: finished_runs.results(again, cell) for cell in original} == original
    events = [event["event"] for event in read_events(again.run_folder("baseline"))]
    assert "superseded" not in events
    tally("a folder that is unmounted under its runs: they stop, and mounted again they go on", 1, "results equal")
