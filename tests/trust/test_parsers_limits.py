"""Experiment files made to exhaust memory, time or patience: refused in one sentence, within limits of both."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from ablatrix.orchestrator.store import log_tail
from ablatrix.orchestrator.store.code_snapshot import code_root
from ablatrix.trainer.rundir import run_files
from tests.evidence import Cases, Tally
from tests.trust import bombs, long_words
from tests.workspace import Workspace

TERABYTE = 1 << 40
MEMORY = 6 << 30  # bytes of address space: torch's libraries alone need two


def test_bombs_are_refused(tmp_path: Path, cases: Cases, tally: Tally) -> None:
    """Each within 20 s of one core and 1 GiB of memory; a signal of the limits, or a traceback, ends the process."""
    names = [name for name in bombs.REFUSED if name not in bombs.SLOW[: cases(len(bombs.SLOW), 0)]]
    for name in (*names, *bombs.FINE):
        bombs.write(tmp_path, name)
    words = [sys.executable, "-m", "tests.trust.bombs", str(tmp_path), *names, *bombs.FINE]
    done = subprocess.run(words, capture_output=True, text=True, cwd=code_root(), check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert {name: words for name, words in said.items() if bool(words) != (name in bombs.REFUSED)} == {}
    assert not [name for name, words in said.items() if len(words) > 20_000]
    assert not (code_root() / "canary").exists()
    tally(
        "experiment files that are bombs are refused",
        cases=len(names),
        detail=f"within {bombs.SECONDS} s and {bombs.BYTES >> 20} MiB, 0 tracebacks",
    )


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (bombs.SECONDS, bombs.SECONDS))


def test_files_of_a_terabyte(work: Workspace, cases: Cases, tally: Tally) -> None:
    """Sparse ones in the place of any file of a study: a sentence or what else is known, never a traceback."""
    run = next((work.folder / "out" / "study").glob("baseline-*"))
    looks = ("status", "report", "show baseline", "cancel baseline --yes")
    places: dict[Path, tuple[str, ...]] = {
        run / name: looks for name in (run_files.EVENTS, run_files.SUMMARY, run_files.CONFIG)
    }
    places |= {work.folder / "out" / ".last": looks, run / run_files.LOSS: looks[1::-1]}
    places |= {run / run_files.JOB_OUT: ("logs baseline -n 50", "logs baseline -n 0", *looks)}
    tried = 0
    for path, verbs in places.items():
        before = path.read_bytes()
        os.truncate(path, TERABYTE)
        for verb in verbs[: cases(1, len(verbs))]:
            done = subprocess.run(
                work.command(*verb.split()),
                capture_output=True,
                cwd=work.folder,
                env=work.env(),
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
                check=False,
            )
            told = done.stderr.decode("utf-8", "replace")
            assert done.returncode in (0, 1, 2) and "Traceback" not in told, (path, verb, told[-2000:])
            assert "needs more memory" not in told, (path, verb)
            if verb == "status" and path.name in (run_files.EVENTS, run_files.SUMMARY):  # not a state that may be false
                assert done.returncode == 1 and f"{path.name}: File too large" in told, told
            tried += 1
        path.write_bytes(before)
    tally("files of a terabyte in a study", cases=tried, detail="0 tracebacks within 6 GiB")


def test_a_log_of_a_terabyte_does_not_hide_why_a_run_failed(tmp_path: Path) -> None:
    log = tmp_path / "job.out"
    log.write_text("step 1\n")
    os.truncate(log, TERABYTE)
    with open(log, "a") as file:
        file.write("\nno such file: data.bin\n")
    assert log_tail.last_line(log) == "no such file: data.bin"
    (tmp_path / "empty").touch()
    assert log_tail.last_line(tmp_path / "empty") == log_tail.last_line(tmp_path / "none") == "no output"


def test_the_command_line_refuses_them(workspace: Workspace, cases: Cases, tally: Tally) -> None:
    """`plan`, `check` and `submit` as they are called: exit code 2, nothing created."""
    names = bombs.REFUSED[:: cases(14, 1)]
    for name in names:
        path = bombs.write(workspace.folder, name)
        for verb in ("plan", "check", "submit")[: cases(1, 3)]:
            words = workspace.command(verb, path, "--launcher", "local")
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                cwd=workspace.folder,
                env=workspace.env(),
                stdin=subprocess.DEVNULL,
                preexec_fn=limited,
                check=False,
            )
            assert done.returncode == 2, (name, done.returncode, done.stdout[-500:], done.stderr[-2000:])
            assert "Traceback" not in done.stderr
            assert all(line.startswith("error: ") for line in done.stderr.splitlines()), (name, done.stderr[-2000:])
    assert not (workspace.folder / "out").exists()
    tally("the command line refuses bombs with exit code 2", cases=len(names), detail="0 tracebacks, nothing created")


def test_long_words_do_not_hold_up_the_search_for_secrets(cases: Cases, tally: Tally) -> None:
    size = cases(1 << 17, 1 << 20)
    words = [sys.executable, "-m", "tests.trust.long_words", str(size)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=code_root(), check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    tally(
        "long words do not hold up the search for secrets",
        cases=int(done.stdout),
        detail=f"{size >> 10} KiB of each, in 7 places, within {long_words.SECONDS} s",
    )
