"""Half a minute of coverage-guided fuzzing over all parsers; `make fuzz` does ten."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ablatrix.orchestrator.store.code_snapshot import code_root
from tests.evidence import Tally
from tests.fuzz import targets

SECONDS = 30


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this platform")
def test_fuzzing_finds_no_crash(tmp_path: Path, seed: int, tally: Tally) -> None:
    words = [sys.executable, "-m", "tests.fuzz", f"--seconds={SECONDS}", "--jobs=1", f"--seed={seed}"]
    done = subprocess.run([*words, f"--saved={tmp_path}"], capture_output=True, text=True, cwd=code_root(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(targets.TARGETS) + 1
    # each has got through its seeds, and coverage was measured
    assert all(re.search(r" [1-9][\d,]* executions +[1-9][\d,]* edges  0 crashes", line) for line in lines[:-1]), lines
    executions = int(lines[-1].split()[0].replace(",", ""))
    tally("fuzzing finds no crash", cases=executions, detail=f"{len(targets.TARGETS)} parsers, {SECONDS} s, 0 crashes")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this platform")
def test_a_crash_is_found_and_kept(tmp_path: Path) -> None:
    """The fuzzer itself: a parser that breaks at a certain word."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        "from tests.fuzz import __main__ as fuzzer, targets\n"
        "import sys\n"
        "def read(data):\n"
        "    if data[:1] == b'x' and b'y' in data:\n"
        "        raise KeyError('broken')\n"
        "targets.TARGETS.clear()\n"
        "targets.TARGETS['set'] = targets.Target(read, lambda: [b'x'], 8)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import runpy, sys; runpy.run_path({str(broken)!r}); "
         "from tests.fuzz import targets, one; sys.argv[1:] = ['set', sys.argv[1], '-max_total_time=20', "
         "'-artifact_prefix=' + sys.argv[1]]; one.main()", f"{tmp_path}/"],
        capture_output=True, text=True, cwd=code_root(), check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "KeyError: 'broken'" in done.stdout + done.stderr
    (kept,) = tmp_path.glob("crash-*")
    assert b"y" in kept.read_bytes()
