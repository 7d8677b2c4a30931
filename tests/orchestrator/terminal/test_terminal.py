"""A real terminal (pty): what Ctrl-C and closing it do."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ablatrix.trainer.rundir import run_files
from tests.support.waiting import PATIENCE, wait_for
from tests.support.workspace import Workspace

STUDY = """\
name: study
command: sh train.sh {run_dir} {seed}
base: {}
design: [baseline]
seeds: 2
metrics: {regex: 'iter (?P<iter>\\d+) loss (?P<loss>\\S+)'}
slurm: {cpus_per_task: 64}
launcher: local
"""
TRAIN = 'echo iter 1 loss 2; until [ -e "$PWD/go" ]; do sleep 0.1; done; echo iter 2 loss 1\n'


class Session:
    """A command in a terminal of its own, as its session's leader."""

    def __init__(self, workspace: Workspace, *words: str) -> None:
        command = workspace.command(*words)
        self.pid, self.terminal = pty.fork()
        if not self.pid:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests were started with `&`
            os.chdir(workspace.folder)
            os.execve(command[0], command, {**workspace.env(), "TERM": "xterm", "COLUMNS": "100"})
        self.text = ""

    def read_until(self, words: str) -> str:
        """What it has shown so far, once `words` are in it; '' of words: until it ends."""
        end = time.monotonic() + PATIENCE
        while not words or words not in self.text:
            assert time.monotonic() < end, self.text
            if select.select([self.terminal], [], [], 0.2)[0]:
                try:
                    self.text += os.read(self.terminal, 4096).decode("utf-8", "replace")
                except OSError:  # the other side has closed it
                    assert not words, self.text
                    return self.text
        return self.text

    def until_it_waits(self) -> None:
        """Until it sleeps: CPython loses a Ctrl-C between the prompt of `input()` and its read, up to the next key."""
        stat = Path(f"/proc/{self.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def study(workspace: Workspace) -> Workspace:
    (workspace.folder / "study.yaml").write_text(STUDY)
    (workspace.folder / "train.sh").write_text(TRAIN)
    workspace.python = sys.executable  # the process that the terminal knows
    return workspace


def runs(workspace: Workspace) -> list[Path]:
    return sorted((workspace.folder / "out" / "study").glob("baseline-seed*"))


def until_started(workspace: Workspace) -> None:
    wait_for(lambda: any("started" in run_files.read_text(run / run_files.EVENTS) for run in runs(workspace)))


def test_closing_the_terminal_stops_no_run(study: Workspace) -> None:
    """Neither the one that runs nor the one that waits for it."""
    session = Session(study, "submit", "study.yaml")
    session.read_until("closing the terminal does not stop them, Ctrl-C does")
    until_started(study)
    os.close(session.terminal)
    (study.folder / "go").touch()
    assert session.wait() == 0
    assert len(runs(study)) == 2 and all((run / run_files.SUMMARY).exists() for run in runs(study))


def test_a_reader_that_leaves_stops_no_run(study: Workspace) -> None:
    command = f"{' '.join(study.command('submit', 'study.yaml'))} | head -n 2"
    with subprocess.Popen(["bash", "-c", command], cwd=study.folder, env=study.env()) as process:
        until_started(study)
        (study.folder / "go").touch()
        process.wait(PATIENCE)
    wait_for(lambda: all((run / run_files.SUMMARY).exists() for run in runs(study)))


def test_ctrl_c_stops_local_runs_and_says_so(study: Workspace) -> None:
    session = Session(study, "submit", "study.yaml")
    until_started(study)
    os.write(session.terminal, b"\x03")
    text = session.read_until("")
    assert session.wait() == 130
    assert "stopped; rerun the command to continue" in text and "Traceback" not in text
    assert {state["state"] for state in study.states().values()} <= {"stopped", "planned"}


@pytest.mark.parametrize(
    ("words", "shown", "sentence"),
    [
        (("status", "--watch"), "2 runs", "stopped watching; the runs continue"),
        (("logs", "baseline-seed1", "-f"), "iter 1", "stopped following; the run continues"),
        (("cancel", "--all"), "[y/N]", "interrupted; rerun the command"),
    ],
)
def test_ctrl_c_in_any_verb_is_one_sentence(
    study: Workspace, words: tuple[str, ...], shown: str, sentence: str
) -> None:
    with subprocess.Popen(
        study.command("submit", "study.yaml"), cwd=study.folder, env=study.env(), stdout=subprocess.DEVNULL
    ) as submit:
        try:
            until_started(study)
            session = Session(study, *words)
            session.read_until(shown)
            session.until_it_waits()
            os.write(session.terminal, b"\x03")
            text = session.read_until("")
            assert session.wait() == 130
            assert text.rstrip().splitlines()[-1].startswith(sentence) and "Traceback" not in text
        finally:
            submit.send_signal(signal.SIGTERM)
