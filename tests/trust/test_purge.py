"""A purge of scratch takes single old files: what is missing is named, nothing is invented, and it can be had again."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ablatrix.orchestrator.cli import main
from ablatrix.orchestrator.status import removed_files, study_state
from ablatrix.orchestrator.store import study_dir
from ablatrix.trainer.rundir import run_files
from tests.support import finished_runs
from tests.support.evidence import Cases, Tally
from tests.support.workspace import Workspace

STUDY = Path("out/study")

# what is removed -> (what is said of it, by which verb; the command that brings it back, or None: nothing needs it)
TABLE: list[tuple[str, str, str | None]] = [
    (r"out/\.last", "", "submit"),
    (r"out/study/study\.json", "study.json is missing (removed since?); submit the experiment again", "submit"),
    (r"out/\.snapshots/\w+\.patch", "nothing needs it", None),
    (r"out/\.snapshots/\w+/.*", "of the code snapshot", "submit"),
    (r"out/study/logs/.*", "", None),
    (r"out/study/report/.*", "report writes it again", "report"),
    (r"out/study/[^/]*-seed.*/(config|origins)\.json", "submit writes it again", "submit"),
    (r"out/study/[^/]*-seed.*/loss\.csv", "submit --retry runs it again", "submit --retry"),
    (r"out/study/[^/]*-seed.*/summary\.json", "submit --retry writes it again", "submit --retry"),
    (r"out/study/[^/]*-seed.*/.*", "only submit --rerun makes it again", "submit --rerun CELL"),
]  # fmt: skip


def files(workspace: Workspace) -> list[str]:
    """Everything below out/, the compiled code apart, which nobody would miss."""
    found = (path for path in (workspace.folder / "out").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sorted(str(path.relative_to(workspace.folder)) for path in found)


def kind(name: str) -> tuple[str, str | None]:
    """(what must be said, what brings it back)."""
    return next((said, cure) for pattern, said, cure in TABLE if re.fullmatch(pattern, name))


def called(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    """A verb in this process: exit code and all that it has said, in lines that are not wrapped."""
    monkeypatch.setattr("sys.argv", ["ablatrix", *words])
    code = 0
    try:
        main()
    except SystemExit as ending:
        code = int(ending.code or 0)
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out + captured.err


def said_of(study: Path) -> str:
    """What status and report say beside their tables."""
    found = study_dir.load_study(study)
    return "\n".join(removed_files.list_all(found, study_state.collect(found)))


def aside(path: Path, place: Path) -> Iterator[None]:
    """With the file gone, until the generator goes on."""
    shutil.move(path, place)
    yield
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(place, path)


def test_every_file_is_named(
    work: Workspace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cases: Cases,
    seed: int,
    tally: Tally,
) -> None:
    """Each one in turn is taken away and put back; `status` says which, and of which run."""
    monkeypatch.chdir(work.folder)
    assert said_of(STUDY) == ""
    everything = files(work)
    code = [name for name in everything if name.startswith("out/.snapshots")]
    names = [name for name in everything if name not in code]
    names += random.Random(seed).sample(code, min(len(code), cases(4, 1000)))
    for name in names:
        said, _ = kind(name)
        for _ in aside(Path(name), tmp_path / "kept"):
            if name == str(STUDY / study_dir.STUDY):
                for verb in ("status", "report"):
                    code, text = called([verb, str(STUDY)], capsys, monkeypatch)
                    assert code == 2 and said in text
                continue
            told = said_of(STUDY)
            if not said:
                assert told == "", name
                continue
            assert said in told, f"{name}: {told!r}"
            run = re.match(r"out/study/([^/]*-seed[^/]*)/(.*)", name)
            shown = run[2] if run else re.sub(r"out/(study|\.snapshots/\w+|\.snapshots)/", "", name)
            assert len(told.splitlines()) == 1 and shown in told, told
            if run:
                assert told.startswith(run[1])
                state = next(s for s in study_state.collect(study_dir.load_study(STUDY)) if s.run.id == run[1])
                assert state.state == ("lost" if name.endswith("summary.json") else "done")
                assert state.missing == (run[2],)
    assert said_of(STUDY) == ""
    tally("any one file of a finished study that a purge takes is named with its run", len(names), "0 states invented")


def picked(names: list[str], cure: str, most: int, seed: int) -> list[str]:
    chosen = [name for name in names if kind(name)[1] == cure]
    return random.Random(seed).sample(chosen, min(most, len(chosen)))


@pytest.mark.parametrize("cure", ["submit", "report"])
def test_what_is_written_again_is_the_same(
    work: Workspace,
    cure: str,
    cases: Cases,
    seed: int,
    tally: Tally,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(work.folder)
    command = ["submit", "study.yaml", "--launcher", "local"] if cure == "submit" else ["report", str(STUDY)]
    assert called(command, capsys, monkeypatch)[0] == 0
    before = {name: Path(name).read_bytes() for name in files(work)}
    code_files = [name for name in before if name.startswith("out/.snapshots")]
    plain = [name for name in before if kind(name)[1] == cure and name not in code_files]
    chosen = (picked(plain, cure, cases(1, 20), seed) if cure == "report" else plain) + (
        picked(code_files, cure, cases(2, 10), seed)
    )
    for name in chosen:
        Path(name).unlink()
        code, text = called(command, capsys, monkeypatch)
        assert code == 0, text
        after = {name: Path(name).read_bytes() for name in files(work)}
        if name == "out/.last":  # the name of the study submitted last, by whoever submits runs
            continue
        assert after.keys() == before.keys() - ({"out/.last"} - after.keys()), name
        changed = {other for other in after if after[other] != before[other]}
        assert changed <= {str(STUDY / study_dir.STUDY)}, (name, changed)
        assert said_of(STUDY) == ""
    tally(f"a purged file that `{cure}` writes again is what it was, byte for byte", len(chosen))


@pytest.mark.slow
def test_what_is_run_again_has_the_same_result(work: Workspace, cases: Cases, seed: int, tally: Tally) -> None:
    """loss.csv and summary.json by --retry; whatever else a run has left by --rerun."""
    original = finished_runs.results(work, "baseline")
    names = [name.partition("baseline-seed")[2].partition("/")[2] for name in files(work) if "/baseline-seed" in name]
    retried = [run_files.LOSS, run_files.SUMMARY]
    others = sorted(set(names) - set(retried) - {run_files.CONFIG, "origins.json"})
    chosen = retried[: cases(1, 2)] + random.Random(seed).sample(others, cases(0, len(others)))
    for name in chosen:
        (work.run_folder("baseline") / name).unlink()
        how = ["--retry"] if name in retried else ["--rerun", "baseline"]
        work.run("submit", "study.yaml", "--launcher", "local", *how)
        for old in (work.folder / STUDY).glob("*.old-*"):
            shutil.rmtree(old)
        assert {state["state"] for state in work.states().values()} == {"done"}, name
        assert all(state["missing"] == [] for state in work.states().values()), name
        assert finished_runs.results(work, "baseline") == original, name
    tally("a run with a purged file that is run again has the same result, bit for bit", len(chosen), "clocks apart")


def test_any_one_folder(
    work: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    """The folder of a run is a run that was not begun; a report that is gone as a whole was never made."""
    monkeypatch.chdir(work.folder)
    folders = sorted(str(path) for path in Path("out").rglob("*") if path.is_dir() and ".snapshots/" not in str(path))
    for name in folders:
        for _ in aside(Path(name), tmp_path / "kept"):
            code, text = called(["status", str(STUDY), "--json"], capsys, monkeypatch)
            if name == str(STUDY):
                assert code == 2 and "no study there" in text
                continue
            assert code == 0, text
            states = {run["id"]: run["state"] for run in json.loads(text)["runs"]}
            gone = Path(name).name
            assert states == {run: "planned" if run == gone else "done" for run in states}
            if gone in (".snapshots", "logs", ".queue") or Path(name).parent.name == ".queue":
                assert "removed since: " in said_of(STUDY), name
    tally("any one folder of a finished study that is gone leaves the other runs as they are", len(folders))


def test_a_loss_csv_that_is_gone_is_not_made_from_half(work: Workspace) -> None:
    """The run had been stopped: it begins anew, for a result with a hole would look like a whole one."""
    run, original = work.run_folder("baseline"), finished_runs.results(work, "baseline")
    for name in (run_files.LOSS, run_files.SUMMARY, run_files.MODEL):
        (run / name).unlink()
    work.run("submit", "study.yaml", "--launcher", "local", "--retry")
    assert finished_runs.results(work, "baseline") == original
    assert "rows before checkpoint-00000010.pt are gone; the run begins anew" in (run / run_files.JOB_OUT).read_text()
    assert os.path.exists(run / "checkpoint-00000010.pt.bad")
