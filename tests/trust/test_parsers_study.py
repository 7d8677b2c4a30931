"""A finished study with any of its files damaged: every command that looks at it ends in a word, not a traceback."""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

from ablatrix.orchestrator import cli
from ablatrix.orchestrator.report import curve_cache
from ablatrix.orchestrator.store import study_dir
from ablatrix.trainer.rundir import run_files
from tests.evidence import Cases, Tally
from tests.fuzz import targets
from tests.trust import damage

LOOKS = (
    ("status", "study"),
    ("status", "study", "--json"),
    ("show", "rope-seed1", "--study", "study"),
    ("diff", "rope-seed1", "baseline-seed1", "--study", "study"),
    ("logs", "rope-seed1", "--study", "study"),
)
DEEP = b'{"a":' * 90 + b"1" + b"}" * 90


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished study at out/study of the working folder."""
    where, _ = targets.study()
    shutil.copytree(where, tmp_path / "out" / "study")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")  # no Slurm
    return tmp_path / "out" / "study"


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> int:
    """The exit code of a command, in this process; whatever is no exit is a traceback, and comes out of here."""
    monkeypatch.setattr(sys, "argv", ["orchestrator", *words, *(["--output", "out"] if words[0] != "logs" else [])])
    try:
        cli.main()
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    told = capsys.readouterr()
    assert code in (0, 1, 2) and "Traceback" not in told.err, (words, code, told.err)
    if code:
        assert told.err.startswith("error: ") and len(told.err) < 20_000, (words, told.err)
    return code


def files_of(study: Path) -> list[Path]:
    return [path for path in sorted(study.rglob("*")) if path.is_file() and path.suffix != ".pt"]


def test_damaged_files(
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cases: Cases,
    seed: int,
    tally: Tally,
) -> None:
    rng, count, reports = random.Random(seed), cases(30, 600), 0
    for number in range(count):
        path = rng.choice(files_of(study))
        before = path.read_bytes()
        path.write_bytes(DEEP if rng.random() < 0.02 else damage.damaged(rng, before))
        looks = list(LOOKS[:: cases(2, 1)])
        if number % cases(30, 50) == 0:
            looks.append(("report", "study"))
            reports += 1
        for words in looks:
            call(monkeypatch, capsys, *words)
        path.write_bytes(before)
    tally(
        "commands on a study with a damaged file",
        cases=count,
        detail=f"{reports} of them with a report, 0 tracebacks, exit codes 0, 1, 2",
    )


def test_numbers_that_cannot_be(
    study: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    cases: Cases,
    seed: int,
    tally: Tally,
) -> None:
    """Numbers by their form, but none that a trainer counts or measures: a report is made all the same."""
    extremes = ["1e40", "1e308", "-1e30", "-1e18", "9" * 400, "-1", "1e-320", "-0.0", "inf", "-inf", "nan", ""]
    rng, count = random.Random(seed), cases(5, 30)
    path = next(study.glob("rope-*")) / run_files.LOSS
    header, *rows = path.read_text().splitlines()
    columns = header.split(",")
    for number in range(count):
        spoiled = [row.split(",") for row in rows]
        hit = [columns[number % len(columns)], *rng.sample(columns, rng.randint(0, 2))]
        for row in rng.sample(spoiled, rng.randint(1, len(spoiled))):
            for name in hit:
                row[columns.index(name)] = rng.choice(extremes)
        path.write_text("\n".join([header, *map(",".join, spoiled), ""]))
        assert call(monkeypatch, capsys, "status", "study") == 0
        assert call(monkeypatch, capsys, "report", "study") == 0
    tally("a report of a loss.csv with numbers that cannot be", cases=count, detail="0 tracebacks")


def test_files_that_are_none(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cases: Cases, tally: Tally
) -> None:
    """A pipe that nobody writes to, a device without an end, a folder, a link that leads nowhere or to itself."""
    (study / "report").mkdir()
    (study / "report" / curve_cache.CURVES).write_bytes(b"x")
    tried = 0
    for path in files_of(study)[:: cases(3, 1)]:
        before = path.read_bytes()
        for kind in ("pipe", "/dev/zero", "folder", path.name, "/nowhere"):
            path.unlink()
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "folder":
                path.mkdir()
            else:
                path.symlink_to(kind)
            for words in LOOKS[:3]:
                call(monkeypatch, capsys, *words)
            path.rmdir() if kind == "folder" else path.unlink()
            path.write_bytes(before)
            tried += 1
    tally("commands on a study with a file that is none", cases=tried, detail="pipes, devices, folders, links; 0 hangs")


def test_the_name_of_a_study_may_be_anything(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tally: Tally
) -> None:
    names = ("x" * 5000, "a/" * 3000, "\ud800", "..", "/dev/zero", "/proc/self/mem", "out/study/study.json")
    for name in names:
        assert call(monkeypatch, capsys, "status", name) == 2
    for content in (b"\0", b"\xff", b"x" * 5000, b"/dev/zero", b"../" * 2000):
        (study.parent / study_dir.LAST).write_bytes(content)
        assert call(monkeypatch, capsys, "status") == 0  # the newest study that is there
    tally("a study is looked for under any name", cases=len(names) + 5, detail="0 tracebacks")
